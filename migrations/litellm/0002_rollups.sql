-- In a database of our own the rollups count from the first row on.
SELECT litespend.attach();
SELECT litespend.recount();

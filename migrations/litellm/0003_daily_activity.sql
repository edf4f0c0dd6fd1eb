-- In a database of our own changes of daily rows are noted from the first on.
SELECT litespend.attach_activity();

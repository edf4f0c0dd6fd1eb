-- Ids of booked records: what makes a record that is sent again the same record, whoever else uses the same id.
--
-- The log's request_id can't say it: it is one namespace for all senders, and rows of the log are deleted. A plain table,
-- not partitions by month: an id must be unique across months, which a partitioned table's index can't hold, and its key
-- is a hash, so that rows come and go evenly over the index and the space of deleted ones is used again.

CREATE TABLE litespend.booked_ids (
    -- The first 128 bits of the SHA-256 of the sender's key (as its hash), a NUL, and the id.
    id uuid PRIMARY KEY,
    booked_on date NOT NULL,
    -- SHA-256 of what the sender sent, in canonical form.
    digest bytea NOT NULL,
    -- The row of the log: the id itself, where it was free.
    request_id text NOT NULL,
    -- USD as booked.
    spend double precision NOT NULL,
    -- The attempt that wrote this, by which a lost commit is found again.
    booking uuid NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX booked_ids_booked_on ON litespend.booked_ids (booked_on);
-- Whether a row of the log was booked under somebody's id. Only equality is asked for.
CREATE INDEX booked_ids_request_id ON litespend.booked_ids USING hash (request_id);

-- Models, customers and tags that a sender brought first, today and yesterday: what its bound of new names by day is
-- counted by, until they are words of the rollups.
CREATE TABLE litespend.booked_names (
    digest bytea PRIMARY KEY,
    day date NOT NULL,
    sender text NOT NULL
);
CREATE INDEX booked_names_day ON litespend.booked_names (day, sender);

-- Which layout the bytes of a packed day have. Layout 1: entries one after the other, big-endian, as "pack" writes them:
-- user or end user, team, key and model as int4 (ids of "words"), requests as int8, spend as float8, total tokens as int8;
-- of usage also prompt and completion tokens as int8. A reader that does not know a layout reads the rows instead.
ALTER TABLE litespend.packed_days ADD COLUMN layout smallint NOT NULL DEFAULT 1;

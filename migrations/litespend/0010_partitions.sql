-- Rollups on a partitioned log. PostgreSQL fires a statement trigger only for the table that the statement names, and none
-- for ATTACH, DETACH and DROP. So each partition has the triggers as well, and the partitions that are counted are
-- remembered. A read compares the remembered partitions with the log's in its own snapshot, and reads the log itself while
-- they differ.
--
-- The lock on a partition holds its writers up while it is waited for: rather fail, and be tried again.
SET LOCAL lock_timeout = '10s';

-- The partitions that are counted, with their days. NULL: the days are not known, so every day may be affected.
CREATE TABLE litespend.partitions (
    relation oid PRIMARY KEY,
    first_day date,
    last_day date
);

-- The partitions of a table, at every level.
CREATE FUNCTION litespend.partitions_of(parent regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE tree (relation) AS (
        SELECT inhrelid FROM pg_inherits WHERE inhparent = parent AND NOT inhdetachpending
        UNION ALL
        SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.relation WHERE NOT i.inhdetachpending)
    SELECT relation::regclass FROM tree
$$;

-- The days of a partition by range of timestamps, from the bounds that PostgreSQL prints. NULL for every other partition.
CREATE FUNCTION litespend.partition_days(relation regclass, OUT first_day date, OUT last_day date)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
DECLARE
    bounds text[];
BEGIN
    SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid),
                        '^FOR VALUES FROM \(''(\d{4}-\d\d-\d\d[^'']*)''\) TO \(''(\d{4}-\d\d-\d\d[^'']*)''\)$')
    INTO bounds FROM pg_class c WHERE c.oid = relation;
    first_day := bounds[1]::timestamp::date;
    last_day := (bounds[2]::timestamp - interval '1 microsecond')::date;
EXCEPTION WHEN data_exception THEN
    first_day := NULL;
    last_day := NULL;
END $$;

-- Marks days to be counted again: all days if they are not known, or if there are more than ten years of them.
CREATE FUNCTION litespend.mark_dirty(first date, last date) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO litespend.deltas (sign, day)
    SELECT 0, NULL WHERE first IS NULL OR last IS NULL OR last - first > 3660
    UNION ALL
    SELECT 0, day::date FROM generate_series(first::timestamp, last::timestamp, interval '1 day') AS day
    WHERE last - first <= 3660
$$;

-- Puts the four triggers on a table, in place of those that are there.
CREATE FUNCTION litespend.create_triggers(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format($q$
        DROP TRIGGER IF EXISTS litespend_inserted ON %1$s;
        DROP TRIGGER IF EXISTS litespend_deleted ON %1$s;
        DROP TRIGGER IF EXISTS litespend_updated ON %1$s;
        DROP TRIGGER IF EXISTS litespend_truncated ON %1$s;
        CREATE TRIGGER litespend_inserted AFTER INSERT ON %1$s
            REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_inserted();
        CREATE TRIGGER litespend_deleted AFTER DELETE ON %1$s
            REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_deleted();
        CREATE TRIGGER litespend_updated AFTER UPDATE ON %1$s
            REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT
            EXECUTE FUNCTION litespend.log_updated();
        CREATE TRIGGER litespend_truncated AFTER TRUNCATE ON %1$s
            FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_truncated();
        $q$, relation);
END $$;

-- Whether a table has all four triggers of the log, enabled.
CREATE FUNCTION litespend.has_triggers(relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) = 4
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = relation AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
      AND p.pronamespace = 'litespend'::regnamespace
      AND p.proname IN ('log_inserted', 'log_deleted', 'log_updated', 'log_truncated')
      AND t.tgname IN ('litespend_inserted', 'litespend_deleted', 'litespend_updated', 'litespend_truncated')
$$;

-- The tables that have triggers of the log.
CREATE FUNCTION litespend.tables_with_triggers() RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT t.tgrelid::regclass
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND p.pronamespace = 'litespend'::regnamespace
      AND p.proname IN ('log_inserted', 'log_deleted', 'log_updated', 'log_truncated')
$$;

-- Whether the partitions of this log are the remembered ones, each with its triggers, and no other table has triggers.
CREATE FUNCTION litespend.partitions_are_counted(log regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH present AS MATERIALIZED (SELECT relation::oid AS relation FROM litespend.partitions_of(log) AS relation),
         triggered AS MATERIALIZED (
             SELECT t.tgrelid AS relation, count(*) = 4 AND bool_and(t.tgenabled IN ('O', 'A')) AS complete
             FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
             WHERE NOT t.tgisinternal AND p.pronamespace = 'litespend'::regnamespace
               AND p.proname IN ('log_inserted', 'log_deleted', 'log_updated', 'log_truncated')
             GROUP BY t.tgrelid)
    SELECT NOT EXISTS (SELECT FROM present FULL JOIN litespend.partitions AS known USING (relation)
                       WHERE present IS NULL OR known IS NULL)
       AND NOT EXISTS (SELECT FROM present LEFT JOIN triggered USING (relation) WHERE complete IS NOT TRUE)
       AND NOT EXISTS (SELECT FROM triggered
                       WHERE relation <> log AND relation NOT IN (SELECT present.relation FROM present))
$$;

-- The table that is counted: the one with LiteLLM's name and triggers of ours that is no partition. NULL where there is
-- none, or more than one. A log that was renamed is no longer counted.
CREATE OR REPLACE FUNCTION litespend.counted_table(function_name text) RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN count(DISTINCT c.oid) = 1 THEN min(c.oid)::regclass END
    FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid
    WHERE NOT t.tgisinternal AND p.pronamespace = 'litespend'::regnamespace AND p.proname = function_name
      AND NOT c.relispartition AND c.relname IN ('LiteLLM_SpendLogs', 'LiteLLM_DailyUserSpend')
$$;

CREATE OR REPLACE FUNCTION litespend.attached() RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT COALESCE(litespend.has_triggers(to_regclass('"LiteLLM_SpendLogs"'))
                    AND litespend.partitions_are_counted(to_regclass('"LiteLLM_SpendLogs"')), false)
$$;

-- Begins to count this log: the triggers, and a mark that every day is still to be counted. Triggers on other tables of
-- the log's schema are removed: of a log that was renamed, or of a partition that was detached.
CREATE OR REPLACE FUNCTION litespend.attach(log regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    other regclass;
    own oid := (SELECT relnamespace FROM pg_class WHERE oid = log);
BEGIN
    IF log IS NULL THEN
        RAISE EXCEPTION 'there is no table "LiteLLM_SpendLogs" in the search path' USING ERRCODE = 'undefined_table';
    END IF;
    FOR other IN SELECT litespend.tables_with_triggers()
    LOOP
        CONTINUE WHEN other = log OR other IN (SELECT litespend.partitions_of(log));
        IF (SELECT relnamespace FROM pg_class WHERE oid = other) <> own THEN
            RAISE EXCEPTION 'the rollups of this database count %', other USING ERRCODE = 'object_in_use';
        END IF;
        PERFORM litespend.drop_log_triggers(other);
    END LOOP;
    PERFORM litespend.create_triggers(log);
    DELETE FROM litespend.partitions;
    FOR other IN SELECT litespend.partitions_of(log)
    LOOP
        PERFORM litespend.create_triggers(other);
        INSERT INTO litespend.partitions SELECT other, days.* FROM litespend.partition_days(other) AS days;
    END LOOP;
    INSERT INTO litespend.deltas (sign, day) VALUES (0, NULL);
END $$;

CREATE FUNCTION litespend.drop_log_triggers(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found name;
BEGIN
    FOR found IN SELECT t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                 WHERE t.tgrelid = relation AND NOT t.tgisinternal AND p.pronamespace = 'litespend'::regnamespace
    LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', found, relation);
    END LOOP;
END $$;

-- Makes the remembered partitions those of the log that is counted. The days of every partition that came or went are to
-- be counted again. Returns how many came and went; 0 at once if none did, or if another caller is at work.
CREATE FUNCTION litespend.follow_partitions(OUT came integer, OUT went integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    log regclass := litespend.counted_table('log_inserted');
    found record;
BEGIN
    came := 0;
    went := 0;
    IF log IS NULL OR litespend.partitions_are_counted(log) OR NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN;
    END IF;
    FOR found IN SELECT relation, first_day, last_day FROM litespend.partitions
                 WHERE relation NOT IN (SELECT p::oid FROM litespend.partitions_of(log) AS p)
    LOOP
        PERFORM litespend.mark_dirty(found.first_day, found.last_day);
        DELETE FROM litespend.partitions WHERE relation = found.relation;
        went := went + 1;
    END LOOP;
    -- A detached partition that was never remembered may have triggers, too: it was attached with them.
    FOR found IN SELECT relation FROM litespend.tables_with_triggers() AS relation
                 WHERE relation <> log AND relation NOT IN (SELECT litespend.partitions_of(log))
                   AND (SELECT relnamespace FROM pg_class WHERE oid = relation)
                       = (SELECT relnamespace FROM pg_class WHERE oid = log)
    LOOP
        PERFORM litespend.drop_log_triggers(found.relation);
    END LOOP;
    FOR found IN SELECT relation, days.first_day, days.last_day
                 FROM litespend.partitions_of(log) AS relation, litespend.partition_days(relation) AS days
                 WHERE relation::oid NOT IN (SELECT p.relation FROM litespend.partitions p)
                    OR NOT litespend.has_triggers(relation)
    LOOP
        -- Waits for the writers of the partition: what they write is there when its days are counted.
        PERFORM litespend.create_triggers(found.relation);
        PERFORM litespend.mark_dirty(found.first_day, found.last_day);
        INSERT INTO litespend.partitions VALUES (found.relation, found.first_day, found.last_day)
        ON CONFLICT (relation) DO UPDATE SET first_day = EXCLUDED.first_day, last_day = EXCLUDED.last_day;
        came := came + 1;
    END LOOP;
END $$;

-- TRUNCATE of a partition makes its own days dirty, and not all of them.
CREATE OR REPLACE FUNCTION litespend.log_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    BEGIN
        PERFORM litespend.mark_dirty(
            (SELECT first_day FROM litespend.partitions WHERE relation = TG_RELID),
            (SELECT last_day FROM litespend.partitions WHERE relation = TG_RELID));
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'litespend: rollups missed a truncate: %', SQLERRM;
    END;
    RETURN NULL;
END $$;

-- A day is a day in UTC, whatever the session's time zone, where "startTime" is a timestamptz.
ALTER FUNCTION litespend.log_inserted() SET timezone = 'UTC';
ALTER FUNCTION litespend.log_deleted() SET timezone = 'UTC';
ALTER FUNCTION litespend.log_updated() SET timezone = 'UTC';
ALTER FUNCTION litespend.recount() SET timezone = 'UTC';

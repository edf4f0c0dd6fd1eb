-- A partition cannot be attached while the default partition has rows of its range, so these rows must be moved with it. A
-- read whose snapshot is older than the move may miss them: it does not look into the default partition for days that have
-- a partition. So they are moved only when somebody asks for it.

DROP FUNCTION litespend.add_month(regclass, date);

-- Creates the partition of one month. Returns whether it did: false if a partition has days of the month, if another
-- session is creating partitions, or if a table that is no partition has the name. If the default partition has rows of
-- the month, they are moved, or, without "move_rows", nothing happens. Waits for each lock as long as "lock_timeout" says.
CREATE FUNCTION litespend.add_month(log regclass, month date, move_rows boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
DECLARE
    month_start date := date_trunc('month', month);
    next_month date := date_trunc('month', month) + interval '1 month';
    default_part regclass := litespend.default_partition(log);
    has_rollup_triggers boolean := litespend.has_triggers(log);
    has_rows_to_move boolean := false;
    partition text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884304) THEN
        RETURN false;
    END IF;
    -- A statement of its own: its snapshot shows what the last holder of the lock committed.
    IF EXISTS (SELECT FROM litespend.partitions_of(log) AS other, litespend.partition_days(other) AS days
               WHERE days.first_day < next_month AND days.last_day >= month_start) THEN
        RETURN false;
    END IF;
    SELECT format('%I.%I', n.nspname, c.relname || to_char(month_start, '_YYYY_MM')) INTO partition
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = log;
    IF to_regclass(partition) IS NOT NULL THEN
        RAISE WARNING 'litespend: % exists, but is no partition of the log', partition;
        RETURN false;
    END IF;
    IF default_part IS NOT NULL THEN
        -- No more rows come while the lock is held. Readers do not wait for it.
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', default_part);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE "startTime" >= $1 AND "startTime" < $2)', default_part)
        INTO has_rows_to_move USING month_start::timestamp, next_month::timestamp;
        IF has_rows_to_move AND NOT move_rows THEN
            RETURN false;
        END IF;
    END IF;
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING CONSTRAINTS)', partition, log);
    IF has_rows_to_move THEN
        -- The rows stay in the log, so the triggers must not count them as deleted.
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', default_part);
        EXECUTE format('WITH moved AS (DELETE FROM %s WHERE "startTime" >= $1 AND "startTime" < $2 RETURNING *)
                        INSERT INTO %s SELECT * FROM moved', default_part, partition)
        USING month_start::timestamp, next_month::timestamp;
        EXECUTE format('ALTER TABLE %s ENABLE TRIGGER USER', default_part);
    END IF;
    IF has_rollup_triggers THEN
        PERFORM litespend.create_triggers(partition::regclass);
        INSERT INTO litespend.partitions VALUES (partition::regclass, month_start, next_month - 1);
    END IF;
    -- Waits for the readers of the default partition.
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                   log, partition, month_start, next_month);
    RETURN true;
END $$;

-- Begins to copy a log: the copy, with partitions for the months of the log, and the triggers that keep it up to date.
CREATE OR REPLACE FUNCTION litespend.begin_by_month(log regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    by_month regclass;
BEGIN
    IF EXISTS (SELECT FROM pg_index WHERE indrelid = log AND indisunique AND NOT indisprimary)
       OR EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                  WHERE t.tgrelid = log AND NOT t.tgisinternal AND p.pronamespace <> 'litespend'::regnamespace)
       OR EXISTS (SELECT FROM pg_policy WHERE polrelid = log) OR EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = log) THEN
        RAISE EXCEPTION 'the log has unique indexes, triggers, policies or publications that the partitioned log would lose: drop them first'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    by_month := litespend.create_by_month(log);
    PERFORM litespend.add_month(by_month, month, true) FROM litespend.months_of(log) AS month;
    EXECUTE format($q$
        CREATE TRIGGER litespend_mirror_inserted AFTER INSERT ON %1$s
            REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_mirrored();
        CREATE TRIGGER litespend_mirror_deleted AFTER DELETE ON %1$s
            REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_mirrored();
        CREATE TRIGGER litespend_mirror_updated AFTER UPDATE ON %1$s
            REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT
            EXECUTE FUNCTION litespend.log_mirrored();
        CREATE TRIGGER litespend_mirror_truncated AFTER TRUNCATE ON %1$s
            FOR EACH STATEMENT EXECUTE FUNCTION litespend.log_mirrored();
        $q$, log);
    INSERT INTO litespend.settings (name, value) VALUES ('log_by_month', jsonb_build_object('copied', 0))
    ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value;
END $$;

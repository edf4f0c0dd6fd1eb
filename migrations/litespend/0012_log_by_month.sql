-- The log partitioned by month, in a database that litespend owns: a month is removed by dropping its partition. The
-- functions here change only what they are called for; LiteLLM's own log is never partitioned by them.
--
-- A partition is created apart from the log and then attached, which does not lock the log against readers and writers.
-- Rows of a month without a partition go to the default partition. They are moved when the partition is created: a
-- partition cannot be attached while the default partition has rows of its range.

-- The default partition of a log; NULL if it has none.
CREATE FUNCTION litespend.default_partition(log regclass) RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NULLIF(partdefid, 0)::regclass FROM pg_partitioned_table WHERE partrelid = log
$$;

-- Creates the partition of one month, with the rows of that month from the default partition. Returns whether it did:
-- false if a partition has days of the month, or if another session is creating partitions.
CREATE FUNCTION litespend.add_month(log regclass, month date) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO' AS $$
DECLARE
    month_start date := date_trunc('month', month);
    next_month date := date_trunc('month', month) + interval '1 month';
    rest regclass := litespend.default_partition(log);
    counted boolean := litespend.has_triggers(log);
    moves boolean := false;
    partition text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884304)
       OR EXISTS (SELECT FROM litespend.partitions_of(log) AS other, litespend.partition_days(other) AS days
                  WHERE days.first_day < next_month AND days.last_day >= month_start) THEN
        RETURN false;
    END IF;
    SELECT format('%I.%I', n.nspname, c.relname || to_char(month_start, '_YYYY_MM')) INTO partition
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = log;
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING CONSTRAINTS)', partition, log);
    IF rest IS NOT NULL THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE "startTime" >= $1 AND "startTime" < $2)', rest)
        INTO moves USING month_start::timestamp, next_month::timestamp;
        IF moves THEN
            -- The rows are not moved in vain: the lock for attaching must be free now, and is needed again at the end.
            BEGIN
                EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', rest);
                RAISE EXCEPTION 'free' USING ERRCODE = 'LS001';
            EXCEPTION WHEN SQLSTATE 'LS001' THEN
                NULL;
            END;
            -- The rows stay in the log, so the triggers must not count them as deleted.
            EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', rest);
            EXECUTE format('WITH moved AS (DELETE FROM %s WHERE "startTime" >= $1 AND "startTime" < $2 RETURNING *)
                            INSERT INTO %s SELECT * FROM moved', rest, partition)
            USING month_start::timestamp, next_month::timestamp;
            EXECUTE format('ALTER TABLE %s ENABLE TRIGGER USER', rest);
        END IF;
    END IF;
    IF counted THEN
        PERFORM litespend.create_triggers(partition::regclass);
        INSERT INTO litespend.partitions VALUES (partition::regclass, month_start, next_month - 1);
    END IF;
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
                   log, partition, month_start, next_month);
    RETURN true;
END $$;

-- The first days of the months of which the table has rows.
CREATE FUNCTION litespend.months_of(relation regclass) RETURNS SETOF date
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    month date;
BEGIN
    EXECUTE format('SELECT date_trunc(''month'', min("startTime"))::date FROM %s', relation) INTO month;
    WHILE month IS NOT NULL LOOP
        RETURN NEXT month;
        EXECUTE format('SELECT date_trunc(''month'', min("startTime"))::date FROM %s WHERE "startTime" >= $1', relation)
        INTO month USING (month + interval '1 month')::timestamp;
    END LOOP;
END $$;

-- An empty table beside the log with its columns, partitioned by month: the default partition and an index for each of
-- the log's. The primary key of a partitioned table must contain the start of the call.
CREATE FUNCTION litespend.create_by_month(log regclass) RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    space name;
    found record;
    created text;
BEGIN
    SELECT nspname INTO space FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = log;
    created := format('%I.%I', space, 'LiteLLM_SpendLogs_by_month');
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING CONSTRAINTS)
                    PARTITION BY RANGE ("startTime")', created, log);
    EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I PRIMARY KEY (request_id, "startTime")',
                   created, 'LiteLLM_SpendLogs_by_month_pkey');
    FOR found IN SELECT c.relname, substring(pg_get_indexdef(c.oid) FROM ' USING .*$') AS definition
                 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                 WHERE i.indrelid = log AND i.indisvalid AND NOT i.indisunique ORDER BY c.oid
    LOOP
        EXECUTE format('CREATE INDEX %I ON %s %s', left(found.relname, 55) || '_month', created, found.definition);
    END LOOP;
    EXECUTE format('CREATE TABLE %I.%I PARTITION OF %s DEFAULT', space, 'LiteLLM_SpendLogs_default', created);
    RETURN created::regclass;
END $$;

-- Puts the partitioned table in place of the log, which is dropped. Both must have the same rows. The rollups go on as
-- they are: they count the same rows under new triggers.
CREATE FUNCTION litespend.replace_log(log regclass, by_month regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    space name;
    found record;
    counted boolean := litespend.has_triggers(log);
BEGIN
    SELECT nspname INTO space FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = log;
    EXECUTE format('DROP TABLE %s', log);
    EXECUTE format('ALTER TABLE %s RENAME TO %I', by_month, 'LiteLLM_SpendLogs');
    EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', by_month, 'LiteLLM_SpendLogs_by_month_pkey',
                   'LiteLLM_SpendLogs_pkey');
    FOR found IN SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                 WHERE i.indrelid = by_month AND c.relname LIKE '%\_month'
    LOOP
        EXECUTE format('ALTER INDEX %I.%I RENAME TO %I', space, found.relname, left(found.relname, -6));
    END LOOP;
    -- Partitions that were created beside the log, and their indexes, have names of their table.
    FOR found IN SELECT c.relname FROM litespend.partitions_of(by_month) AS partition JOIN pg_class c ON c.oid = partition
                 WHERE c.relname LIKE 'LiteLLM\_SpendLogs\_by\_month\_%'
                 UNION ALL
                 SELECT c.relname FROM litespend.partitions_of(by_month) AS partition
                 JOIN pg_index i ON i.indrelid = partition JOIN pg_class c ON c.oid = i.indexrelid
                 WHERE c.relname LIKE 'LiteLLM\_SpendLogs\_by\_month\_%'
    LOOP
        -- ALTER TABLE renames indexes, too.
        EXECUTE format('ALTER TABLE %I.%I RENAME TO %I', space, found.relname,
                       replace(found.relname, 'LiteLLM_SpendLogs_by_month_', 'LiteLLM_SpendLogs_'));
    END LOOP;
    IF counted THEN
        PERFORM litespend.create_triggers(by_month);
        DELETE FROM litespend.partitions;
        FOR found IN SELECT partition, days.* FROM litespend.partitions_of(by_month) AS partition,
                                                   litespend.partition_days(partition) AS days
        LOOP
            PERFORM litespend.create_triggers(found.partition);
            INSERT INTO litespend.partitions VALUES (found.partition, found.first_day, found.last_day);
        END LOOP;
    END IF;
END $$;

-- Partitions a log that has no rows. Does nothing to any other.
CREATE FUNCTION litespend.partition_empty_log(log regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    has_rows boolean;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = log) IS DISTINCT FROM 'r' THEN
        RETURN;
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', log) INTO has_rows;
    IF has_rows THEN
        RETURN;
    END IF;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', log);
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', log) INTO has_rows;
    IF NOT has_rows THEN
        PERFORM litespend.replace_log(log, litespend.create_by_month(log));
    END IF;
END $$;

-- While the rows of a log are copied, every statement on the log is repeated on the copy. A failure must not fail the
-- writer: the copy is marked as broken, and is not used.
CREATE FUNCTION litespend.log_mirrored() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    copy text := format('%I.%I', TG_TABLE_SCHEMA, 'LiteLLM_SpendLogs_by_month');
BEGIN
    BEGIN
        IF TG_OP = 'TRUNCATE' THEN
            EXECUTE format('TRUNCATE %s', copy);
        END IF;
        IF TG_OP IN ('DELETE', 'UPDATE') THEN
            EXECUTE format('DELETE FROM %s AS c USING removed AS r
                            WHERE c.request_id = r.request_id AND c."startTime" = r."startTime"', copy);
        END IF;
        IF TG_OP IN ('INSERT', 'UPDATE') THEN
            EXECUTE format('INSERT INTO %s SELECT * FROM added', copy);
        END IF;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'litespend: the partitioned copy of the log missed a change: %', SQLERRM;
        UPDATE litespend.settings SET value = value || '{"broken": true}' WHERE name = 'log_by_month';
    END;
    RETURN NULL;
END $$;

-- Begins to copy a log: the copy, with partitions for the months of the log, and the triggers that keep it up to date.
CREATE FUNCTION litespend.begin_by_month(log regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    by_month regclass;
BEGIN
    by_month := litespend.create_by_month(log);
    PERFORM litespend.add_month(by_month, month) FROM litespend.months_of(log) AS month;
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

-- Removes the copy and its triggers. The log stays as it is.
CREATE FUNCTION litespend.cancel_by_month(log regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found name;
BEGIN
    FOR found IN SELECT t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                 WHERE t.tgrelid = log AND NOT t.tgisinternal AND p.pronamespace = 'litespend'::regnamespace
                   AND p.proname = 'log_mirrored'
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found, log);
    END LOOP;
    EXECUTE format('DROP TABLE IF EXISTS %I.%I',
                   (SELECT nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = log),
                   'LiteLLM_SpendLogs_by_month');
    DELETE FROM litespend.settings WHERE name = 'log_by_month';
END $$;

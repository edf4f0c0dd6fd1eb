-- The log partitioned by month, in a database that litespend owns: a month is removed by dropping its partition. The
-- functions here change only what they are called for; LiteLLM's own log is never partitioned by them.
--
-- A partition is created apart from the log and then attached. That locks only the default partition, and briefly: queries
-- that read it wait. Rows of a month without a partition go to the default partition. They are moved when the partition is
-- created, because a partition cannot be attached while the default partition has rows of its range.

-- The default partition of a log; NULL if it has none.
CREATE FUNCTION litespend.default_partition(log regclass) RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NULLIF(partdefid, 0)::regclass FROM pg_partitioned_table WHERE partrelid = log
$$;

-- Creates the partition of one month, with the rows of that month from the default partition. Returns whether it did:
-- false if a partition has days of the month, if another session is creating partitions, or if a table that is no partition
-- has the name. Waits for each lock as long as "lock_timeout" says.
CREATE FUNCTION litespend.add_month(log regclass, month date) RETURNS boolean
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
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING CONSTRAINTS)', partition, log);
    IF default_part IS NOT NULL THEN
        -- No more rows come while the lock is held. Readers do not wait for it.
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', default_part);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE "startTime" >= $1 AND "startTime" < $2)', default_part)
        INTO has_rows_to_move USING month_start::timestamp, next_month::timestamp;
        IF has_rows_to_move THEN
            -- The rows stay in the log, so the triggers must not count them as deleted.
            EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', default_part);
            EXECUTE format('WITH moved AS (DELETE FROM %s WHERE "startTime" >= $1 AND "startTime" < $2 RETURNING *)
                            INSERT INTO %s SELECT * FROM moved', default_part, partition)
            USING month_start::timestamp, next_month::timestamp;
            EXECUTE format('ALTER TABLE %s ENABLE TRIGGER USER', default_part);
        END IF;
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

-- The first days of the months of which the table has rows. Infinite times have no month.
CREATE FUNCTION litespend.months_of(relation regclass) RETURNS SETOF date
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    month date;
    earliest timestamp := '4713-01-01 BC';
BEGIN
    LOOP
        EXECUTE format('SELECT date_trunc($3, min("startTime"))::date FROM %s WHERE "startTime" >= $1 AND "startTime" < $2',
                       relation)
        INTO month USING earliest, timestamp 'infinity', 'month';
        EXIT WHEN month IS NULL;
        RETURN NEXT month;
        earliest := month + interval '1 month';
    END LOOP;
END $$;

-- An empty table beside the log with its columns and rights, partitioned by month: the default partition, and the log's
-- valid, non-unique indexes. The primary key of a partitioned table must contain the start of the call.
CREATE FUNCTION litespend.create_by_month(log regclass) RETURNS regclass
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    schema_name name;
    found record;
    created text;
BEGIN
    SELECT nspname INTO schema_name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = log;
    created := format('%I.%I', schema_name, 'LiteLLM_SpendLogs_by_month');
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
    EXECUTE format('CREATE TABLE %I.%I PARTITION OF %s DEFAULT', schema_name, 'LiteLLM_SpendLogs_default', created);
    FOR found IN SELECT privilege_type, is_grantable, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS role
                 FROM pg_class c, aclexplode(c.relacl) WHERE c.oid = log AND grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON %s TO %s%s', found.privilege_type, created, found.role,
                       CASE WHEN found.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    RETURN created::regclass;
END $$;

-- Number of a table's valid, non-unique indexes.
CREATE FUNCTION litespend.copied_indexes(relation regclass) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*) FROM pg_index WHERE indrelid = relation AND indisvalid AND NOT indisunique
$$;

-- Puts the partitioned table in place of the log, which is dropped. Both must have the same rows. The rollups stay valid:
-- the new triggers count the same rows.
CREATE FUNCTION litespend.replace_log(log regclass, by_month regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    schema_name name;
    found record;
    has_rollup_triggers boolean := litespend.has_triggers(log);
BEGIN
    IF litespend.copied_indexes(log) <> litespend.copied_indexes(by_month) THEN
        RAISE EXCEPTION 'the indexes of the log changed while it was copied' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    SELECT nspname INTO schema_name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = log;
    EXECUTE format('DROP TABLE %s', log);
    EXECUTE format('ALTER TABLE %s RENAME TO %I', by_month, 'LiteLLM_SpendLogs');
    EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', by_month, 'LiteLLM_SpendLogs_by_month_pkey',
                   'LiteLLM_SpendLogs_pkey');
    FOR found IN SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                 WHERE i.indrelid = by_month AND c.relname LIKE '%\_month'
    LOOP
        EXECUTE format('ALTER INDEX %I.%I RENAME TO %I', schema_name, found.relname, left(found.relname, -6));
    END LOOP;
    -- Partitions that were created beside the log, and their indexes, are named after the copy.
    FOR found IN SELECT c.relname FROM litespend.partitions_of(by_month) AS partition JOIN pg_class c ON c.oid = partition
                 WHERE c.relname LIKE 'LiteLLM\_SpendLogs\_by\_month\_%'
                 UNION ALL
                 SELECT c.relname FROM litespend.partitions_of(by_month) AS partition
                 JOIN pg_index i ON i.indrelid = partition JOIN pg_class c ON c.oid = i.indexrelid
                 WHERE c.relname LIKE 'LiteLLM\_SpendLogs\_by\_month\_%'
    LOOP
        -- ALTER TABLE ... RENAME also works for indexes.
        EXECUTE format('ALTER TABLE %I.%I RENAME TO %I', schema_name, found.relname,
                       replace(found.relname, 'LiteLLM_SpendLogs_by_month_', 'LiteLLM_SpendLogs_'));
    END LOOP;
    IF has_rollup_triggers THEN
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

-- While the rows of a log are copied, the row changes of every statement are applied to the copy as well. A failure does
-- not fail the writer: the copy is marked as broken, and is not used.
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
        UPDATE litespend.settings SET value = value || '{"broken": true}' WHERE name = 'log_by_month' AND NOT value ? 'broken';
    END;
    RETURN NULL;
END $$;

-- Begins to copy a log: the copy, with partitions for the months of the log, and the triggers that keep it up to date.
CREATE FUNCTION litespend.begin_by_month(log regclass) RETURNS void
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

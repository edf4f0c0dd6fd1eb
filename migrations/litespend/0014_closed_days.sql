-- Closed days: their totals outlive the rows of the log. Rows that are deleted, truncated away or dropped with their
-- partition change no sum of a closed day; rows that arrive late are added, and an update counts by its difference. The
-- sums of a closed day are never counted again from the log, because the log may have lost its rows.
--
-- Nothing changes where no day is closed.

CREATE TABLE litespend.closed_days (
    day date PRIMARY KEY,
    closed_at timestamptz NOT NULL DEFAULT now(),
    -- What the day had when it was closed. USD and counts.
    requests bigint NOT NULL,
    spend double precision NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens bigint NOT NULL,
    -- The revision of the day's manifest in the archive, with the number of its rows.
    revision integer NOT NULL,
    archived_rows bigint NOT NULL,
    -- When the archive was last read back and compared.
    verified_at timestamptz NOT NULL DEFAULT now(),
    -- When the rows were removed from the log.
    pruned_at timestamptz,
    -- Number of rows in "closed_ids".
    buckets integer NOT NULL
);

-- The IDs of archived rows, by day: the first eight bytes of their SHA-256, about 500 in a bucket. So a row that comes again
-- after its day was closed is recognised without a look into the archive. Without effect while the day is not closed.
CREATE TABLE litespend.closed_ids (
    day date NOT NULL,
    bucket integer NOT NULL,
    digests bytea NOT NULL,
    PRIMARY KEY (day, bucket)
);
-- Eight random bytes can't be compressed.
ALTER TABLE litespend.closed_ids ALTER COLUMN digests SET STORAGE EXTERNAL;

-- The IDs of rows that arrived after their day was closed, until the archive has these rows, too.
CREATE TABLE litespend.late_ids (
    day date NOT NULL,
    digest bytea NOT NULL,
    PRIMARY KEY (day, digest)
);

-- What was added to a closed day: "late" rows, the differences of "updated" rows, and "missed" changes, whose figures are
-- unknown.
CREATE TABLE litespend.adjustments (
    day date NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    kind text NOT NULL,
    requests bigint,
    spend double precision,
    prompt_tokens bigint,
    completion_tokens bigint,
    total_tokens bigint
);
CREATE INDEX adjustments_day ON litespend.adjustments (day);

-- Figures of closed days that the day tables do not have: by user, public model name and deployment. A day has several
-- rows of a combination where rows arrived late or were updated; they add up.
CREATE TABLE litespend.closed_activity (
    day date NOT NULL,
    user_id text,
    model_group text,
    model_id text,
    requests bigint NOT NULL,
    spend double precision NOT NULL,
    total_tokens bigint NOT NULL
);
CREATE INDEX closed_activity_day ON litespend.closed_activity (day);

-- The sums of the calls that started at midnight, the first instant of a closed day. LiteLLM's summary of a range includes
-- them, but no other call of the end day.
CREATE TABLE litespend.closed_midnights (
    day date NOT NULL,
    team_id text,
    user_id text,
    api_key text NOT NULL,
    model text NOT NULL,
    end_user text,
    requests bigint NOT NULL,
    spend double precision NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    total_tokens bigint NOT NULL
);
CREATE INDEX closed_midnights_day ON litespend.closed_midnights (day);

-- What the first and the last rows of a key on a closed day say about the key, for keys that no table knows any more.
CREATE TABLE litespend.closed_key_names (
    day date NOT NULL,
    api_key text NOT NULL,
    is_first boolean NOT NULL,
    "startTime" timestamp NOT NULL,
    alias text,
    team text,
    owner text
);
CREATE INDEX closed_key_names_key ON litespend.closed_key_names (api_key, day);

CREATE TABLE litespend.reopened_days (
    day date NOT NULL,
    reopened_at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL
);

CREATE FUNCTION litespend.id_digest(request_id text) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT substring(sha256(convert_to(request_id, 'UTF8')) FOR 8)
$$;

CREATE FUNCTION litespend.id_bucket(digest bytea, buckets integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT (get_byte(digest, 0) * 65536 + get_byte(digest, 1) * 256 + get_byte(digest, 2)) % buckets
$$;

-- Whether a row with this ID is counted in a closed day: the archive has it, or it arrived late. Eight bytes match by
-- chance, at any place, once in 10^16 lookups.
CREATE FUNCTION litespend.is_known(closed date, request_id text, buckets integer) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT COALESCE((SELECT position(litespend.id_digest(request_id) IN digests) > 0 FROM litespend.closed_ids
                     WHERE day = closed
                       AND bucket = litespend.id_bucket(litespend.id_digest(request_id), buckets)), false)
        OR EXISTS (SELECT FROM litespend.late_ids WHERE day = closed AND digest = litespend.id_digest(request_id))
$$;

-- Whether the closed days are those of this log. A database has one set of closed days.
CREATE FUNCTION litespend.has_closed_days(log regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM litespend.closed_days)
       AND EXISTS (SELECT FROM litespend.settings s JOIN pg_class c ON c.oid = log
                   WHERE s.name = 'books' AND s.value ->> 'schema' = c.relnamespace::regnamespace::text)
$$;

-- Marks days to be counted again, except closed ones. Without days, or with more than ten years of them: all.
CREATE OR REPLACE FUNCTION litespend.mark_dirty(first date, last date) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO litespend.deltas (sign, day)
    SELECT 0, NULL WHERE first IS NULL OR last IS NULL OR last - first > 3660
    UNION ALL
    SELECT 0, day::date FROM generate_series(first::timestamp, last::timestamp, interval '1 day') AS day
    WHERE last - first <= 3660 AND day::date NOT IN (SELECT closed.day FROM litespend.closed_days AS closed)
$$;

CREATE OR REPLACE FUNCTION litespend.log_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    -- The IDs of rows of closed days that are not counted yet.
    late text[] := '{}';
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM litespend.closed_days)
           AND EXISTS (SELECT FROM added JOIN litespend.closed_days AS c ON c.day = "startTime"::date) THEN
            late := ARRAY(SELECT a.request_id FROM added AS a JOIN litespend.closed_days AS c ON c.day = a."startTime"::date
                          WHERE NOT litespend.is_known(c.day, a.request_id, c.buckets));
            INSERT INTO litespend.adjustments
            SELECT a."startTime"::date, now(), 'late', count(*), sum(a.spend), sum(a.prompt_tokens), sum(a.completion_tokens),
                   sum(a.total_tokens)
            FROM added AS a JOIN litespend.closed_days AS c ON c.day = a."startTime"::date
            WHERE a.request_id = ANY (late)
            GROUP BY 1;
            INSERT INTO litespend.closed_activity
            SELECT c.day, a."user", a.model_group, to_jsonb(a) ->> 'model_id', count(*), sum(a.spend), sum(a.total_tokens)
            FROM added AS a JOIN litespend.closed_days AS c ON c.day = a."startTime"::date
            WHERE a.request_id = ANY (late)
            GROUP BY 1, 2, 3, 4;
            INSERT INTO litespend.closed_midnights
            SELECT c.day, a.team_id, a."user", a.api_key, a.model, a.end_user, count(*), sum(a.spend),
                   sum(a.prompt_tokens), sum(a.completion_tokens), sum(a.total_tokens)
            FROM added AS a JOIN litespend.closed_days AS c ON a."startTime"::timestamp = c.day::timestamp
            WHERE a.request_id = ANY (late)
            GROUP BY 1, 2, 3, 4, 5, 6;
            INSERT INTO litespend.deltas
            SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
                   spend, a.prompt_tokens, a.completion_tokens, a.total_tokens
            FROM added AS a
            WHERE "startTime"::date NOT IN (SELECT day FROM litespend.closed_days) OR request_id = ANY (late);
            INSERT INTO litespend.late_ids
            SELECT DISTINCT "startTime"::date, litespend.id_digest(request_id)
            FROM added JOIN litespend.closed_days AS c ON c.day = "startTime"::date
            WHERE request_id = ANY (late)
            ON CONFLICT DO NOTHING;
        ELSE
            INSERT INTO litespend.deltas
            SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
                   spend, prompt_tokens, completion_tokens, total_tokens
            FROM added;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            INSERT INTO litespend.deltas (sign, day)
            SELECT DISTINCT 0, "startTime"::date FROM added
            WHERE "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
            INSERT INTO litespend.adjustments (day, kind)
            SELECT DISTINCT "startTime"::date, 'missed' FROM added
            WHERE "startTime"::date IN (SELECT day FROM litespend.closed_days);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'litespend: rollups missed an insert: %', SQLERRM;
        END;
    END;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION litespend.log_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    BEGIN
        INSERT INTO litespend.deltas
        SELECT -1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               -spend, -prompt_tokens::bigint, -completion_tokens::bigint, -total_tokens::bigint
        FROM removed WHERE "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
        -- What is not a finite number can't be subtracted again.
        INSERT INTO litespend.deltas (sign, day)
        SELECT DISTINCT 0, "startTime"::date FROM removed
        WHERE spend IN ('NaN', 'Infinity', '-Infinity')
          AND "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            INSERT INTO litespend.deltas (sign, day)
            SELECT DISTINCT 0, "startTime"::date FROM removed
            WHERE "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'litespend: rollups missed a delete: %', SQLERRM;
        END;
    END;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION litespend.log_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM litespend.closed_days) THEN
            INSERT INTO litespend.adjustments
            SELECT day, now(), 'updated', sum(sign), sum(sign * spend), sum(sign * prompt_tokens),
                   sum(sign * completion_tokens), sum(sign * total_tokens)
            FROM (SELECT -1 AS sign, "startTime"::date AS day, spend, prompt_tokens, completion_tokens, total_tokens
                  FROM removed
                  UNION ALL
                  SELECT 1, "startTime"::date, spend, prompt_tokens, completion_tokens, total_tokens FROM added) AS changes
            WHERE day IN (SELECT closed.day FROM litespend.closed_days AS closed)
            GROUP BY day
            HAVING sum(sign) <> 0 OR sum(sign * spend) <> 0 OR sum(sign * prompt_tokens) <> 0
                OR sum(sign * completion_tokens) <> 0 OR sum(sign * total_tokens) <> 0;
            INSERT INTO litespend.closed_activity
            SELECT c.day, a."user", a.model_group, a.model_id, sum(sign), sum(sign * a.spend), sum(sign * a.total_tokens)
            FROM (SELECT -1 AS sign, "startTime"::date AS day, "user", model_group, to_jsonb(r) ->> 'model_id' AS model_id,
                         spend, total_tokens
                  FROM removed AS r
                  UNION ALL
                  SELECT 1, "startTime"::date, "user", model_group, to_jsonb(n) ->> 'model_id', spend, total_tokens
                  FROM added AS n) AS a
            JOIN litespend.closed_days AS c ON c.day = a.day
            GROUP BY 1, 2, 3, 4
            HAVING sum(sign) <> 0 OR sum(sign * a.spend) <> 0 OR sum(sign * a.total_tokens) <> 0;
            INSERT INTO litespend.closed_midnights
            SELECT c.day, a.team_id, a."user", a.api_key, a.model, a.end_user, sum(sign), sum(sign * a.spend),
                   sum(sign * a.prompt_tokens), sum(sign * a.completion_tokens), sum(sign * a.total_tokens)
            FROM (SELECT -1 AS sign, "startTime"::timestamp AS at, team_id, "user", api_key, model, end_user, spend,
                         prompt_tokens, completion_tokens, total_tokens
                  FROM removed
                  UNION ALL
                  SELECT 1, "startTime"::timestamp, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                         completion_tokens, total_tokens
                  FROM added) AS a
            JOIN litespend.closed_days AS c ON a.at = c.day::timestamp
            GROUP BY 1, 2, 3, 4, 5, 6
            HAVING sum(sign) <> 0 OR sum(sign * a.spend) <> 0 OR sum(sign * a.total_tokens) <> 0;
        END IF;
        INSERT INTO litespend.deltas
        SELECT -1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               -spend, -prompt_tokens::bigint, -completion_tokens::bigint, -total_tokens::bigint
        FROM removed
        UNION ALL
        SELECT 1, "startTime"::date, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               spend, prompt_tokens, completion_tokens, total_tokens
        FROM added;
        INSERT INTO litespend.deltas (sign, day)
        SELECT DISTINCT 0, "startTime"::date FROM removed
        WHERE spend IN ('NaN', 'Infinity', '-Infinity')
          AND "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            INSERT INTO litespend.deltas (sign, day)
            SELECT 0, day FROM (SELECT "startTime"::date AS day FROM removed
                                UNION SELECT "startTime"::date FROM added) AS days
            WHERE day NOT IN (SELECT closed.day FROM litespend.closed_days AS closed);
            INSERT INTO litespend.adjustments (day, kind)
            SELECT day, 'missed' FROM (SELECT "startTime"::date AS day FROM removed
                                       UNION SELECT "startTime"::date FROM added) AS days
            WHERE day IN (SELECT closed.day FROM litespend.closed_days AS closed);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'litespend: rollups missed an update: %', SQLERRM;
        END;
    END;
    RETURN NULL;
END $$;

-- As before, but the sums of closed days stay, with what waits to be folded into them.
CREATE OR REPLACE FUNCTION litespend.recount() RETURNS date
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    chosen date;
    log regclass := litespend.counted_table('log_inserted');
    closed date[];
BEGIN
    IF log IS NULL OR NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN NULL;
    END IF;
    closed := ARRAY(SELECT day FROM litespend.closed_days);
    IF EXISTS (SELECT FROM litespend.deltas WHERE sign = 0 AND day IS NULL) THEN
        -- Every day is dirty: what was counted is void, and each day of the log is marked by itself.
        UPDATE litespend.turn SET taken = taken + 1;
        DELETE FROM litespend.deltas WHERE day IS NULL OR day <> ALL (closed);
        DELETE FROM litespend.day_usage WHERE day <> ALL (closed);
        DELETE FROM litespend.day_customer WHERE day <> ALL (closed);
        DELETE FROM litespend.day_tag WHERE day <> ALL (closed);
        DELETE FROM litespend.day_tag_owner WHERE day <> ALL (closed);
        EXECUTE format($q$
            INSERT INTO litespend.deltas (sign, day)
            SELECT 0, day::date FROM (SELECT min("startTime")::date AS first, max("startTime")::date AS last
                                      FROM %s) AS span,
                   generate_series(first, last, interval '1 day') AS day
            WHERE first IS NOT NULL AND isfinite(first) AND isfinite(last) AND day::date <> ALL ($1) $q$, log)
        USING closed;
    END IF;
    IF cardinality(closed) > 0 THEN
        DELETE FROM litespend.deltas WHERE sign = 0 AND day = ANY (closed);
    END IF;
    chosen := (SELECT max(day) FROM litespend.deltas WHERE sign = 0);
    IF chosen IS NULL THEN
        RETURN NULL;
    END IF;
    UPDATE litespend.turn SET taken = taken + 1;
    DELETE FROM litespend.deltas WHERE day = chosen;
    DELETE FROM litespend.day_usage WHERE day = chosen;
    DELETE FROM litespend.day_customer WHERE day = chosen;
    DELETE FROM litespend.day_tag WHERE day = chosen;
    DELETE FROM litespend.day_tag_owner WHERE day = chosen;
    -- The log is read once; what follows reads the day's entries several times.
    EXECUTE format($q$
        INSERT INTO litespend.deltas
        SELECT 1, $1, team_id, "user", api_key, model, end_user,
               CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END,
               spend, prompt_tokens, completion_tokens, total_tokens
        FROM %s WHERE "startTime" >= $1 AND "startTime" < $1 + 1 $q$, log) USING chosen;
    PERFORM litespend.absorb('SELECT * FROM litespend.deltas WHERE day = $1', NULL, chosen);
    DELETE FROM litespend.deltas WHERE day = chosen;
    RETURN chosen;
END $$;

-- The days in a range that a read takes from the log while the rollups are not usable as a whole: all days with rows or
-- sums, except closed ones.
CREATE FUNCTION litespend.open_days(log regclass, first date, last date) RETURNS SETOF date
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    RETURN QUERY EXECUTE format($q$
        WITH RECURSIVE logged AS (
            SELECT min("startTime")::date AS day FROM %1$s WHERE "startTime" >= $1
            UNION ALL
            SELECT (SELECT min("startTime")::date FROM %1$s WHERE "startTime" >= logged.day + 1)
            FROM logged WHERE logged.day IS NOT NULL AND logged.day < $2),
        used AS (
            SELECT min(day) AS day FROM litespend.day_usage WHERE day >= $1
            UNION ALL
            SELECT (SELECT min(day) FROM litespend.day_usage WHERE day > used.day)
            FROM used WHERE used.day IS NOT NULL AND used.day < $2)
        SELECT day FROM (SELECT day FROM logged UNION SELECT day FROM used) AS days
        WHERE day BETWEEN $1 AND $2 AND day NOT IN (SELECT closed.day FROM litespend.closed_days AS closed) $q$, log)
    USING first, last;
END $$;

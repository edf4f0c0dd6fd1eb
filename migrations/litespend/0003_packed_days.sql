-- Days that have been quiet are kept packed as well, so that a long report reads a few large values instead of millions
-- of rows. A packed day says what its rows in "day_usage" or "day_customer" say, in the order in which reads want it;
-- any change of such a row drops its packed day in the same statement, and a background task packs it again later. Whole
-- months by key and model are packed like days: a report by key over a quarter reads three values.

CREATE TABLE litespend.packed_days (
    rollup text NOT NULL,
    day date NOT NULL,
    part integer NOT NULL,
    entries bytea NOT NULL,
    PRIMARY KEY (rollup, day, part)
);
-- Read whole and often: unpacking costs more than space.
ALTER TABLE litespend.packed_days ALTER COLUMN entries SET STORAGE EXTERNAL;

-- For the report of one team and one customer, who may have many entries with other teams.
DROP INDEX litespend.day_customer_end_user;
CREATE INDEX day_customer_pair ON litespend.day_customer (end_user, team_id, day);

CREATE FUNCTION litespend.drop_packed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM litespend.packed_days WHERE rollup IN (TG_ARGV[0], TG_ARGV[0] || '_month');
    ELSIF EXISTS (SELECT FROM litespend.packed_days WHERE rollup IN (TG_ARGV[0], TG_ARGV[0] || '_month')) THEN
        DELETE FROM litespend.packed_days WHERE rollup = TG_ARGV[0] AND day IN (SELECT DISTINCT day FROM changed);
        DELETE FROM litespend.packed_days WHERE rollup = TG_ARGV[0] || '_month'
            AND day IN (SELECT DISTINCT date_trunc('month', day)::date FROM changed);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER drop_packed_inserted AFTER INSERT ON litespend.day_usage REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION litespend.drop_packed('usage');
CREATE TRIGGER drop_packed_updated AFTER UPDATE ON litespend.day_usage REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION litespend.drop_packed('usage');
CREATE TRIGGER drop_packed_deleted AFTER DELETE ON litespend.day_usage REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION litespend.drop_packed('usage');
CREATE TRIGGER drop_packed_truncated AFTER TRUNCATE ON litespend.day_usage
    FOR EACH STATEMENT EXECUTE FUNCTION litespend.drop_packed('usage');
CREATE TRIGGER drop_packed_inserted AFTER INSERT ON litespend.day_customer REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION litespend.drop_packed('customer');
CREATE TRIGGER drop_packed_updated AFTER UPDATE ON litespend.day_customer REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION litespend.drop_packed('customer');
CREATE TRIGGER drop_packed_deleted AFTER DELETE ON litespend.day_customer REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION litespend.drop_packed('customer');
CREATE TRIGGER drop_packed_truncated AFTER TRUNCATE ON litespend.day_customer
    FOR EACH STATEMENT EXECUTE FUNCTION litespend.drop_packed('customer');

-- Packs the newest day before "before" that is not packed and not among "but"; returns it, or NULL where there is none
-- or another caller is at work. An entry is 40 or 56 bytes: who, team, key and model as numbers of "words", then
-- requests, spend, total tokens and, of usage, prompt and completion tokens. To be called READ COMMITTED: what is read
-- after the lock was taken is what the last holder left. Parts are small, so that many reads at once can hold one each.
CREATE FUNCTION litespend.pack(chosen text, before date, but date[]) RETURNS date
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    picked date;
    source text := CASE chosen WHEN 'usage' THEN 'litespend.day_usage' ELSE 'litespend.day_customer' END;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN NULL;
    END IF;
    -- The days there are, one index lookup each.
    EXECUTE format($q$
        WITH RECURSIVE days AS (
            SELECT max(day) AS day FROM %1$s WHERE day < $1
            UNION ALL
            SELECT (SELECT max(day) FROM %1$s WHERE day < days.day) FROM days WHERE days.day IS NOT NULL
        )
        SELECT day FROM days WHERE day IS NOT NULL AND day <> ALL ($2)
           AND NOT EXISTS (SELECT FROM litespend.packed_days p WHERE p.rollup = $3 AND p.day = days.day)
        ORDER BY day DESC LIMIT 1 $q$, source) INTO picked USING before, but, chosen;
    IF picked IS NULL THEN
        RETURN NULL;
    END IF;
    IF chosen = 'usage' THEN
        INSERT INTO litespend.packed_days
        SELECT chosen, picked, part, string_agg(
            int4send(user_id) || int4send(team_id) || int4send(api_key) || int4send(model) || int8send(requests)
            || float8send(spend) || int8send(total_tokens) || int8send(prompt_tokens) || int8send(completion_tokens),
            ''::bytea ORDER BY team_id, api_key, model)
        FROM (SELECT *, (row_number() OVER (ORDER BY team_id, api_key, model) - 1) / 4000 AS part
              FROM litespend.day_usage WHERE day = picked) AS entries
        GROUP BY part;
    ELSE
        INSERT INTO litespend.packed_days
        SELECT chosen, picked, part, string_agg(
            int4send(end_user) || int4send(team_id) || int4send(api_key) || int4send(model) || int8send(requests)
            || float8send(spend) || int8send(total_tokens),
            ''::bytea ORDER BY end_user, api_key, model)
        FROM (SELECT *, (row_number() OVER (ORDER BY end_user, api_key, model) - 1) / 4000 AS part
              FROM litespend.day_customer WHERE day = picked) AS entries
        GROUP BY part;
    END IF;
    RETURN picked;
END $$;

-- Packs the newest month of usage that ended before "before", is not packed, and not among "but": by its first day.
-- Users and teams are 0 in it. As with days, NULL where there is none or another caller is at work; READ COMMITTED.
CREATE FUNCTION litespend.pack_month(before date, but date[]) RETURNS date
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    picked date;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7811884301) THEN
        RETURN NULL;
    END IF;
    SELECT month INTO picked
    FROM (SELECT DISTINCT date_trunc('month', day)::date AS month FROM litespend.packed_days
          WHERE rollup = 'usage' AND part = 0) AS months
    WHERE month + interval '1 month' <= before AND month <> ALL (but)
      AND NOT EXISTS (SELECT FROM litespend.packed_days p WHERE p.rollup = 'usage_month' AND p.day = month)
    ORDER BY month DESC LIMIT 1;
    IF picked IS NULL THEN
        RETURN NULL;
    END IF;
    INSERT INTO litespend.packed_days
    SELECT 'usage_month', picked, part, string_agg(
        int4send(0) || int4send(0) || int4send(api_key) || int4send(model) || int8send(requests)
        || float8send(spend) || int8send(total_tokens) || int8send(prompt_tokens) || int8send(completion_tokens),
        ''::bytea ORDER BY api_key, model)
    FROM (SELECT api_key, model, sum(requests)::bigint AS requests, sum(spend) AS spend,
                 sum(total_tokens)::bigint AS total_tokens, sum(prompt_tokens)::bigint AS prompt_tokens,
                 sum(completion_tokens)::bigint AS completion_tokens,
                 (row_number() OVER (ORDER BY api_key, model) - 1) / 4000 AS part
          FROM litespend.day_usage WHERE day >= picked AND day < picked + interval '1 month'
          GROUP BY api_key, model) AS entries
    GROUP BY part;
    RETURN picked;
END $$;

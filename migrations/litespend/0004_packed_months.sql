-- Whole months by key and model, packed like days: a report by key over a quarter reads three values. And an index for
-- the report of one team and one customer, who may have many entries with other teams.

DROP INDEX litespend.day_customer_end_user;
CREATE INDEX day_customer_pair ON litespend.day_customer (end_user, team_id, day);

CREATE OR REPLACE FUNCTION litespend.drop_packed() RETURNS trigger
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
                 (row_number() OVER (ORDER BY api_key, model) - 1) / 50000 AS part
          FROM litespend.day_usage WHERE day >= picked AND day < picked + interval '1 month'
          GROUP BY api_key, model) AS entries
    GROUP BY part;
    RETURN picked;
END $$;

-- Packed days in parts that a read can hold many of at once. What is packed in large ones is packed again.

-- Packs the newest day before "before" that is not packed and not among "but"; returns it, or NULL where there is none
-- or another caller is at work. An entry is 40 or 56 bytes: who, team, key and model as numbers of "words", then
-- requests, spend, total tokens and, of usage, prompt and completion tokens. To be called READ COMMITTED: what is read
-- after the lock was taken is what the last holder left.
CREATE OR REPLACE FUNCTION litespend.pack(chosen text, before date, but date[]) RETURNS date
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

DELETE FROM litespend.packed_days WHERE rollup IN ('usage', 'customer');

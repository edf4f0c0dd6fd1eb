-- Closed days, continued: rows that an update took out of a closed day, and rows that the log lost before they were
-- archived. What was ever logged, continued: it never falls, also not by updates of what is not folded.
SET LOCAL lock_timeout = '10s';

-- The IDs, as digests, of rows that left a closed day by an update, or got another ID. The archive of the day may still have
-- them; they do not belong to the day any more. One may occur several times, so that writers never wait for each other.
CREATE TABLE litespend.moved_ids (day date NOT NULL, digest bytea NOT NULL);
CREATE INDEX moved_ids_day ON litespend.moved_ids (day, digest);

-- Whether the log lost a late row before it was archived. The row counts; if the log has it again, it is archived.
ALTER TABLE litespend.late_ids ADD COLUMN is_lost boolean NOT NULL DEFAULT false;

-- As before, and keeps "moved_ids". Rows of which no sum changes, as when only their texts are emptied, are left out: sums of
-- differences are rounded, and would not be zero.
CREATE OR REPLACE FUNCTION litespend.log_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    BEGIN
        IF EXISTS (SELECT FROM litespend.closed_days) THEN
            -- A row that left its day, or got another ID, is no longer what the archive of that day has. One that came into
            -- a closed day counts there by its difference; its ID is one that arrived late, or that has come back.
            PERFORM litespend.mark_incomplete(day, day)
            FROM (SELECT request_id, "startTime"::date AS day FROM removed
                  EXCEPT SELECT request_id, "startTime"::date FROM added) AS left_behind GROUP BY day;
            INSERT INTO litespend.moved_ids
            SELECT c.day, litespend.id_digest(request_id)
            FROM (SELECT request_id, "startTime"::date AS day FROM removed
                  EXCEPT SELECT request_id, "startTime"::date FROM added) AS left_behind
            JOIN litespend.closed_days AS c USING (day);
            DELETE FROM litespend.moved_ids AS moved
            USING (SELECT request_id, "startTime"::date AS day FROM added
                   EXCEPT SELECT request_id, "startTime"::date FROM removed) AS came
            WHERE moved.day = came.day AND moved.digest = litespend.id_digest(came.request_id);
            INSERT INTO litespend.late_ids
            SELECT c.day, litespend.id_digest(request_id)
            FROM (SELECT request_id, "startTime"::date AS day FROM added
                  EXCEPT SELECT request_id, "startTime"::date FROM removed) AS came
            JOIN litespend.closed_days AS c USING (day)
            WHERE NOT litespend.is_known(c.day, request_id, c.buckets)
            ON CONFLICT DO NOTHING;
            INSERT INTO litespend.adjustments
            SELECT day, now(), 'updated', sum(sign), sum(sign * spend), sum(sign * prompt_tokens),
                   sum(sign * completion_tokens), sum(sign * total_tokens)
            FROM (SELECT -1 AS sign, gone.*
                  FROM (SELECT "startTime"::date AS day, spend, prompt_tokens, completion_tokens, total_tokens FROM removed
                        EXCEPT ALL
                        SELECT "startTime"::date, spend, prompt_tokens, completion_tokens, total_tokens FROM added) AS gone
                  UNION ALL
                  SELECT 1, came.*
                  FROM (SELECT "startTime"::date, spend, prompt_tokens, completion_tokens, total_tokens FROM added
                        EXCEPT ALL
                        SELECT "startTime"::date, spend, prompt_tokens, completion_tokens, total_tokens FROM removed) AS came
                 ) AS changes
            WHERE day IN (SELECT closed.day FROM litespend.closed_days AS closed)
            GROUP BY day
            HAVING sum(sign) <> 0 OR sum(sign * spend) <> 0 OR sum(sign * prompt_tokens) <> 0
                OR sum(sign * completion_tokens) <> 0 OR sum(sign * total_tokens) <> 0;
            INSERT INTO litespend.closed_activity
            SELECT c.day, a."user", a.model_group, a.model_id, sum(sign), sum(sign * a.spend), sum(sign * a.total_tokens)
            FROM (SELECT -1 AS sign, gone.*
                  FROM (SELECT "startTime"::date AS day, "user", model_group, to_jsonb(r) ->> 'model_id' AS model_id, spend,
                               total_tokens FROM removed AS r
                        EXCEPT ALL
                        SELECT "startTime"::date, "user", model_group, to_jsonb(n) ->> 'model_id', spend, total_tokens
                        FROM added AS n) AS gone
                  UNION ALL
                  SELECT 1, came.*
                  FROM (SELECT "startTime"::date, "user", model_group, to_jsonb(n) ->> 'model_id', spend, total_tokens
                        FROM added AS n
                        EXCEPT ALL
                        SELECT "startTime"::date, "user", model_group, to_jsonb(r) ->> 'model_id', spend, total_tokens
                        FROM removed AS r) AS came) AS a
            JOIN litespend.closed_days AS c ON c.day = a.day
            GROUP BY 1, 2, 3, 4
            HAVING sum(sign) <> 0 OR sum(sign * a.spend) <> 0 OR sum(sign * a.total_tokens) <> 0;
            INSERT INTO litespend.closed_midnights
            SELECT c.day, a.team_id, a."user", a.api_key, a.model, a.end_user, sum(sign), sum(sign * a.spend),
                   sum(sign * a.prompt_tokens), sum(sign * a.completion_tokens), sum(sign * a.total_tokens)
            FROM (SELECT -1 AS sign, gone.*
                  FROM (SELECT "startTime"::timestamp AS at, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                               completion_tokens, total_tokens FROM removed
                        EXCEPT ALL
                        SELECT "startTime"::timestamp, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                               completion_tokens, total_tokens FROM added) AS gone
                  UNION ALL
                  SELECT 1, came.*
                  FROM (SELECT "startTime"::timestamp, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                               completion_tokens, total_tokens FROM added
                        EXCEPT ALL
                        SELECT "startTime"::timestamp, team_id, "user", api_key, model, end_user, spend, prompt_tokens,
                               completion_tokens, total_tokens FROM removed) AS came) AS a
            JOIN litespend.closed_days AS c ON a.at = c.day::timestamp
            GROUP BY 1, 2, 3, 4, 5, 6
            HAVING sum(sign) <> 0 OR sum(sign * a.spend) <> 0 OR sum(sign * a.total_tokens) <> 0;
        END IF;
        INSERT INTO litespend.deltas (sign, day, team_id, user_id, api_key, model, end_user, request_tags, spend,
                                      prompt_tokens, completion_tokens, total_tokens, is_update)
        WITH before AS (
            SELECT "startTime"::date AS day, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END AS tags,
                   spend, prompt_tokens, completion_tokens, total_tokens
            FROM removed),
        after AS (
            SELECT "startTime"::date AS day, team_id, "user", api_key, model, end_user,
                   CASE WHEN jsonb_typeof(request_tags) = 'array' AND request_tags <> '[]' THEN request_tags END AS tags,
                   spend, prompt_tokens, completion_tokens, total_tokens
            FROM added)
        SELECT -1, day, team_id, "user", api_key, model, end_user, tags, -spend, -prompt_tokens::bigint,
               -completion_tokens::bigint, -total_tokens::bigint, true
        FROM (SELECT * FROM before EXCEPT ALL SELECT * FROM after) AS gone
        UNION ALL
        SELECT 1, day, team_id, "user", api_key, model, end_user, tags, spend, prompt_tokens, completion_tokens,
               total_tokens, true
        FROM (SELECT * FROM after EXCEPT ALL SELECT * FROM before) AS came;
        INSERT INTO litespend.deltas (sign, day)
        SELECT DISTINCT 0, "startTime"::date FROM removed
        WHERE spend IN ('NaN', 'Infinity', '-Infinity')
          AND "startTime"::date NOT IN (SELECT day FROM litespend.closed_days);
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            PERFORM litespend.mark_incomplete(NULL, NULL);
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

-- Adds what entries log: rows that came, and then what updates changed, so that a scrape between the two never saw more than what
-- is kept as the most. Their words are numbered.
CREATE OR REPLACE FUNCTION litespend.add_lifetime(source text, picked tid[], chosen date) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kind text;
BEGIN
    FOREACH kind IN ARRAY ARRAY['sign > 0 AND is_update IS NOT TRUE', 'is_update'] LOOP
        EXECUTE format($q$
            INSERT INTO litespend.lifetime_usage AS into_table (team_id, user_id, api_key, model, requests, spend,
                                                                prompt_tokens, completion_tokens, total_tokens)
            SELECT COALESCE(t.id, 0), COALESCE(u.id, 0), COALESCE(k.id, 0), COALESCE(m.id, 0),
                   requests, spend, prompt_tokens, completion_tokens, total_tokens
            FROM (SELECT team_id, user_id, api_key, model, sum(sign) AS requests, sum(litespend.finite(spend)) AS spend,
                         sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                         sum(total_tokens) AS total_tokens
                  FROM (%1$s) AS entries WHERE %2$s GROUP BY 1, 2, 3, 4) AS sums
            LEFT JOIN litespend.words t ON t.digest = litespend.digest(team_id)
            LEFT JOIN litespend.words u ON u.digest = litespend.digest(user_id)
            LEFT JOIN litespend.words k ON k.digest = litespend.digest(api_key)
            LEFT JOIN litespend.words m ON m.digest = litespend.digest(model)
            ORDER BY 1, 2, 3, 4
            ON CONFLICT (team_id, user_id, api_key, model) DO UPDATE
            SET requests = into_table.requests + excluded.requests, spend = into_table.spend + excluded.spend,
                prompt_tokens = into_table.prompt_tokens + excluded.prompt_tokens,
                completion_tokens = into_table.completion_tokens + excluded.completion_tokens,
                total_tokens = into_table.total_tokens + excluded.total_tokens $q$, source, kind)
        USING chosen, picked;
    END LOOP;
END $$;

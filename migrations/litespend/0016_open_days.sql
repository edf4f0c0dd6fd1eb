-- As before, and all days with changes that are not folded.
CREATE OR REPLACE FUNCTION litespend.open_days(log regclass, first date, last date) RETURNS SETOF date
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
        SELECT day FROM (SELECT day FROM logged UNION SELECT day FROM used UNION SELECT day FROM litespend.deltas) AS days
        WHERE day BETWEEN $1 AND $2 AND day NOT IN (SELECT closed.day FROM litespend.closed_days AS closed) $q$, log)
    USING first, last;
END $$;

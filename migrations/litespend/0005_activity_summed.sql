-- The days of a range whose sums stand, by one pass over the notes, however many there are.
CREATE OR REPLACE FUNCTION litespend.activity_summed(first text, last text) RETURNS SETOF text
LANGUAGE sql STABLE AS $$
    SELECT date FROM (
        SELECT date FROM litespend.activity_days WHERE date >= first AND date <= last AND litespend.activity_attached()
        EXCEPT SELECT date FROM litespend.activity_changes) AS unchanged
    WHERE NOT EXISTS (SELECT FROM litespend.activity_changes WHERE date IS NULL)
    ORDER BY 1
$$;

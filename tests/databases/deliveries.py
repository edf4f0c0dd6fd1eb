"""LiteLLM's newer way to write: a row of the log comes with a delivery, in one transaction, and another job adds what is
delivered to the sums of keys, teams, users and days.

The table of deliveries is in the schema of LiteLLM 1.110.2, but not in the migrations on the package index. The statements
do what LiteLLM's do.
"""

import json

import rows

TABLE = """
    DO $$ BEGIN
        IF to_regclass('"LiteLLM_SpendLogDelivery"') IS NULL THEN
            CREATE TYPE "AccountingDeliveryState" AS ENUM ('pending', 'applied', 'parked');
            CREATE TABLE "LiteLLM_SpendLogDelivery" (
                delivery_id text PRIMARY KEY,
                request_id text NOT NULL,
                state "AccountingDeliveryState" NOT NULL DEFAULT 'pending',
                accounting_payload jsonb NOT NULL,
                is_batch boolean NOT NULL,
                attempts integer NOT NULL DEFAULT 0,
                next_attempt_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
                applied_at timestamp(3),
                last_error text,
                created_at timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
            );
            CREATE INDEX ON "LiteLLM_SpendLogDelivery" (state, next_attempt_at);
            CREATE INDEX ON "LiteLLM_SpendLogDelivery" (state, applied_at);
            CREATE INDEX ON "LiteLLM_SpendLogDelivery" (request_id);
        END IF;
    END $$"""
DELIVER = """
    INSERT INTO "LiteLLM_SpendLogDelivery" (delivery_id, request_id, accounting_payload, is_batch)
    SELECT delivery_id, request_id, accounting_payload, is_batch
    FROM jsonb_to_recordset(%s::jsonb)
         AS given(delivery_id text, request_id text, accounting_payload jsonb, is_batch boolean)
    ON CONFLICT (delivery_id) DO NOTHING RETURNING delivery_id"""
CHARGED = """
    SELECT DISTINCT request_id FROM "LiteLLM_SpendLogs"
    WHERE request_id = ANY (%s) AND status = 'success' AND spend > 0"""
CLAIM = """
    SELECT delivery_id FROM "LiteLLM_SpendLogDelivery" WHERE state = 'pending'
    ORDER BY next_attempt_at, delivery_id LIMIT %s FOR UPDATE SKIP LOCKED"""
OF_CLAIMED = """
    FROM "LiteLLM_SpendLogDelivery" CROSS JOIN LATERAL jsonb_to_record(accounting_payload)
         AS given(api_key text, "user" text, team_id text, day text, model text, provider text, tokens bigint,
                  spend double precision)
    WHERE delivery_id = ANY (%s)"""
ENTITIES = [
    ("LiteLLM_VerificationToken", "token", "api_key"), ("LiteLLM_UserTable", "user_id", '"user"'),
    ("LiteLLM_TeamTable", "team_id", "team_id"),
]
DAILY = f"""
    INSERT INTO "LiteLLM_DailyUserSpend" AS daily
        (id, user_id, date, api_key, model, custom_llm_provider, mcp_namespaced_tool_name, endpoint, prompt_tokens,
         spend, api_requests, successful_requests, updated_at)
    SELECT gen_random_uuid()::text, "user", day, api_key, model, provider, '', '', sum(tokens), sum(given.spend),
           count(*), count(*), now() AT TIME ZONE 'UTC'
    {OF_CLAIMED} GROUP BY "user", day, api_key, model, provider ORDER BY 2, 3, 4, 5, 6
    ON CONFLICT (user_id, date, api_key, model, custom_llm_provider, mcp_namespaced_tool_name, endpoint) DO UPDATE SET
        prompt_tokens = daily.prompt_tokens + EXCLUDED.prompt_tokens, spend = daily.spend + EXCLUDED.spend,
        api_requests = daily.api_requests + EXCLUDED.api_requests,
        successful_requests = daily.successful_requests + EXCLUDED.successful_requests,
        updated_at = now() AT TIME ZONE 'UTC'"""
APPLIED = """
    UPDATE "LiteLLM_SpendLogDelivery" SET state = 'applied', applied_at = CURRENT_TIMESTAMP WHERE delivery_id = ANY (%s)"""
RETRY = """
    UPDATE "LiteLLM_SpendLogDelivery"
    SET attempts = attempts + 1, last_error = 'Error', next_attempt_at = CURRENT_TIMESTAMP WHERE delivery_id = ANY (%s)"""
CLEAN_UP = """
    DELETE FROM "LiteLLM_SpendLogDelivery" WHERE delivery_id IN (
        SELECT delivery_id FROM "LiteLLM_SpendLogDelivery" WHERE state = 'applied' AND NOT is_batch
        ORDER BY applied_at, delivery_id LIMIT 1000 FOR UPDATE SKIP LOCKED)"""


def calls(first, number):
    """Rows of new calls."""
    return [rows.log_row(each) for each in range(first, first + number)]


def delivery(row, is_batch):
    """The delivery of a row. A batch's or a video's has the id of the row, so that it is charged once."""
    given = {
        "api_key": row["api_key"], "user": row["user"], "team_id": row["team_id"], "day": row["startTime"][:10],
        "model": row["model"], "provider": row["custom_llm_provider"], "tokens": row["total_tokens"],
        "spend": row["spend"],
    }
    name = row["request_id"] if is_batch else f"delivery-{row['request_id']}"
    return {"delivery_id": name, "request_id": row["request_id"], "accounting_payload": given, "is_batch": is_batch}


class Undone(Exception):
    """The transaction is rolled back."""


def flush(connection, entries, is_batch=False, undo=False):
    """Writes rows with their deliveries, without those that are there. Returns how many were new."""
    by_name = {each["delivery_id"]: row for row in entries for each in [delivery(row, is_batch)]}
    given = [delivery(by_name[name], is_batch) for name in sorted(by_name)]
    with connection.transaction():
        accepted = {name for (name,) in connection.execute(DELIVER, [json.dumps(given)])}
        if is_batch:
            charged = {name for (name,) in connection.execute(CHARGED, [sorted(accepted)])}
            connection.execute('DELETE FROM "LiteLLM_SpendLogDelivery" WHERE delivery_id = ANY (%s)', [sorted(charged)])
            accepted -= charged
        rows.insert(connection, "LiteLLM_SpendLogs", [by_name[name] for name in sorted(accepted)], skip_duplicates=True)
        if undo:
            raise Undone
    return len(accepted)


def apply_pending(connection, most=500, undo=False):
    """Adds what is delivered to the sums. Returns how many deliveries were applied."""
    with connection.transaction():
        claimed = [name for (name,) in connection.execute(CLAIM, [most])]
        for table, key, of in ENTITIES:
            connection.execute(
                f'UPDATE "{table}" AS entity SET spend = entity.spend + given.spend '
                f"FROM (SELECT {of} AS name, sum(given.spend) AS spend {OF_CLAIMED} GROUP BY 1) AS given "
                f"WHERE entity.{key} = given.name", [claimed]
            )
        connection.execute(DAILY, [claimed])
        connection.execute(APPLIED, [claimed])
        if undo:
            raise Undone
    return len(claimed)

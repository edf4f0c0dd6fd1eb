-- Secrets of this installation, made at random where they are first needed: what signs the dashboard's tokens and seals
-- its sessions.
CREATE TABLE IF NOT EXISTS litespend.secrets (
    name text PRIMARY KEY,
    value bytea NOT NULL
);

-- Sessions that were made before they were bound to the key that logged in end here. Where LiteLLM owns the tables, its
-- own sessions look the same and stay.
DO $$
BEGIN
    IF to_regclass('_prisma_migrations') IS NULL AND to_regclass('litespend.litellm_migrations') IS NOT NULL
        AND to_regclass('"LiteLLM_VerificationToken"') IS NOT NULL THEN
        DELETE FROM "LiteLLM_VerificationToken" WHERE team_id = 'litellm-dashboard';
    END IF;
END
$$;

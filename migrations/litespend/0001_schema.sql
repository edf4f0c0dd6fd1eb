-- Everything that is litespend's own lives in the schema "litespend"; the schema itself and the ledger of these
-- migrations are made by the migrator. This one records which kind of database it is.
CREATE TABLE litespend.settings (
    name text PRIMARY KEY,
    value jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

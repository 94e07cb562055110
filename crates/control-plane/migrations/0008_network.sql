-- Who reaches a capsule and what it reaches, what E2B's clients are promised of theirs, and
-- requests that may be repeated.

-- Whether anyone may reach its ports, but envd's.
ALTER TABLE capsules ADD COLUMN public_traffic boolean NOT NULL DEFAULT false;
-- The name that its programs are asked by, instead of the public one.
ALTER TABLE capsules ADD COLUMN host_header text;
-- Rules for what it may reach, as `types::Egress` writes them.
ALTER TABLE capsules ADD COLUMN egress jsonb NOT NULL DEFAULT '{}';
-- Whether it was made by E2B's API, in whose words the proxy then speaks of it.
ALTER TABLE capsules ADD COLUMN e2b boolean NOT NULL DEFAULT false;

ALTER TABLE capsules DROP CONSTRAINT capsules_on_timeout_check;
ALTER TABLE capsules ADD CONSTRAINT capsules_on_timeout_check
    CHECK (on_timeout IN ('pause', 'pause_disk', 'kill'));

-- Creates by the keys that their callers gave them, entered with what they made: how far one got
-- is how far its capsule is.
CREATE TABLE idempotency_keys (
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    key text NOT NULL,
    -- Of what was asked for.
    request_hash bytea NOT NULL,
    capsule_id uuid NOT NULL REFERENCES capsules ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, key)
);
CREATE INDEX idempotency_keys_by_capsule ON idempotency_keys (capsule_id);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at);

-- Pausing, lifetimes, snapshots.

-- When its time is over; none is never. The host goes by its own copy.
ALTER TABLE capsules ADD COLUMN ends_at timestamptz;
-- What is done then.
ALTER TABLE capsules ADD COLUMN on_timeout text NOT NULL DEFAULT 'pause'
    CHECK (on_timeout IN ('pause', 'kill'));
-- Whether traffic wakes it when it is paused.
ALTER TABLE capsules ADD COLUMN auto_resume boolean NOT NULL DEFAULT false;
-- The snapshot that it began from, which may be gone.
ALTER TABLE capsules ADD COLUMN snapshot_id uuid;

ALTER TABLE snapshots DROP COLUMN manifest;
ALTER TABLE snapshots DROP COLUMN generation;
ALTER TABLE snapshots ALTER COLUMN size_bytes SET DEFAULT 0;
-- `making` until the host has it, `removing` until the host has it no more. One without a name
-- is there for a fork alone, and goes with it.
ALTER TABLE snapshots ADD COLUMN status text NOT NULL DEFAULT 'making'
    CHECK (status IN ('making', 'ready', 'removing'));
-- Of the capsule that it was taken of.
ALTER TABLE snapshots ADD COLUMN template text NOT NULL;
ALTER TABLE snapshots ADD COLUMN vcpus integer NOT NULL;
ALTER TABLE snapshots ADD COLUMN memory_mib integer NOT NULL;
ALTER TABLE snapshots ADD COLUMN disk_mib integer NOT NULL;
ALTER TABLE snapshots ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX snapshots_by_team ON snapshots (team_id, created_at DESC, id DESC);
CREATE INDEX snapshots_by_host ON snapshots (host_id);

-- Limits of what a team keeps, and what its things take on the hosts' disks.

-- Snapshots, and MiB of storage of snapshots and paused capsules; none is the platform's default.
ALTER TABLE team_limits ADD COLUMN snapshots integer;
ALTER TABLE team_limits ADD COLUMN storage_mib bigint;

-- Bytes on disk of what is kept of it, as its host says; a file that several have counts once.
ALTER TABLE capsules ADD COLUMN storage_bytes bigint NOT NULL DEFAULT 0;
ALTER TABLE snapshots ADD COLUMN storage_bytes bigint NOT NULL DEFAULT 0;
UPDATE snapshots SET storage_bytes = size_bytes;

-- Whether its guest stands still until there is room on its host's disk.
ALTER TABLE capsules ADD COLUMN disk_full boolean NOT NULL DEFAULT false;

-- What the platform's store has, so that another host can go on with it.

-- Number of the capsule's snapshot that is there; 0 for none.
ALTER TABLE capsules ADD COLUMN stored bigint NOT NULL DEFAULT 0;
-- Whether that is all there is of it: it has not run since.
ALTER TABLE capsules ADD COLUMN stored_newest boolean NOT NULL DEFAULT false;
ALTER TABLE snapshots ADD COLUMN stored boolean NOT NULL DEFAULT false;

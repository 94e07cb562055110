-- What the platform's store has, so that another host can go on with it.

-- Number of the capsule's snapshot that is there; 0 for none.
ALTER TABLE capsules ADD COLUMN stored bigint NOT NULL DEFAULT 0;
-- Whether that is all there is of it: it has not run since.
ALTER TABLE capsules ADD COLUMN stored_newest boolean NOT NULL DEFAULT false;
ALTER TABLE snapshots ADD COLUMN stored boolean NOT NULL DEFAULT false;
-- Whether the host has the store.
ALTER TABLE hosts ADD COLUMN store boolean NOT NULL DEFAULT false;
DROP TRIGGER host_changed ON hosts;
CREATE TRIGGER host_changed AFTER UPDATE ON hosts FOR EACH ROW WHEN (
    (OLD.address, OLD.status, OLD.draining, OLD.tags, OLD.templates, OLD.team_id, OLD.store,
     OLD.cert_fingerprint, OLD.cert_previous, OLD.max_vcpus, OLD.memory_mib, OLD.disk_mib)
    IS DISTINCT FROM
    (NEW.address, NEW.status, NEW.draining, NEW.tags, NEW.templates, NEW.team_id, NEW.store,
     NEW.cert_fingerprint, NEW.cert_previous, NEW.max_vcpus, NEW.memory_mib, NEW.disk_mib))
    EXECUTE FUNCTION tell_of_host();

-- Many hosts: who they are, how they are, and how it is known.

-- Takes no more capsules, and those it has are paused.
ALTER TABLE hosts ADD COLUMN draining boolean NOT NULL DEFAULT false;
-- Virtual CPUs that capsules may have together, as `memory_mib` and `disk_mib` are of theirs.
ALTER TABLE hosts ADD COLUMN max_vcpus bigint NOT NULL DEFAULT 0;
-- Whether it has the platform's store.
ALTER TABLE hosts ADD COLUMN store boolean NOT NULL DEFAULT false;
-- What it said of itself last.
ALTER TABLE hosts ADD COLUMN load jsonb NOT NULL DEFAULT '{}';
-- The certificate before the last, good until the host is known to have the last.
ALTER TABLE hosts ADD COLUMN cert_previous text;
-- Grows with each enrolment, and ends what the earlier ones gave out.
ALTER TABLE hosts ADD COLUMN enrolment integer NOT NULL DEFAULT 0;
ALTER TABLE hosts DROP CONSTRAINT hosts_status_check;
UPDATE hosts SET status = 'unreachable' WHERE status IN ('draining', 'offline');
ALTER TABLE hosts ADD CONSTRAINT hosts_status_check
    CHECK (status IN ('pending', 'online', 'unreachable'));
CREATE UNIQUE INDEX hosts_by_name ON hosts (name);
-- Heartbeats write to the same few pages for ever.
ALTER TABLE hosts SET (fillfactor = 50);

-- The one that a refresh token was given for.
ALTER TABLE host_tokens ADD COLUMN parent_id uuid REFERENCES host_tokens ON DELETE CASCADE;
-- What it was first used with.
ALTER TABLE host_tokens ADD COLUMN bound_to bytea;
CREATE INDEX host_tokens_by_host ON host_tokens (host_id);

-- What every control plane signs tokens with.
CREATE TABLE secrets (
    name text PRIMARY KEY,
    value bytea NOT NULL
);

-- Whether a key may do what concerns the whole platform. Until now every key could.
ALTER TABLE api_keys ADD COLUMN operator boolean NOT NULL DEFAULT false;
UPDATE api_keys SET operator = true;

-- `host:UUID` on the channel of changes; a heartbeat that changes nothing else is none.
CREATE FUNCTION tell_of_host() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'host:' || coalesce(NEW.id, OLD.id));
    RETURN NULL;
END $$;
DROP TRIGGER host_moved ON hosts;
DROP FUNCTION tell_of_all();
CREATE TRIGGER host_came_or_went AFTER INSERT OR DELETE ON hosts
    FOR EACH ROW EXECUTE FUNCTION tell_of_host();
CREATE TRIGGER host_changed AFTER UPDATE ON hosts FOR EACH ROW WHEN (
    (OLD.address, OLD.status, OLD.draining, OLD.tags, OLD.templates, OLD.team_id, OLD.store,
     OLD.cert_fingerprint, OLD.cert_previous, OLD.max_vcpus, OLD.memory_mib, OLD.disk_mib)
    IS DISTINCT FROM
    (NEW.address, NEW.status, NEW.draining, NEW.tags, NEW.templates, NEW.team_id, NEW.store,
     NEW.cert_fingerprint, NEW.cert_previous, NEW.max_vcpus, NEW.memory_mib, NEW.disk_mib))
    EXECUTE FUNCTION tell_of_host();

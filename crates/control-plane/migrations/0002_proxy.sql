-- What the sandbox proxy goes by, and the word by which its caches hear of changes.

-- Admits whoever presents it to the capsule's ports, and signs preview links.
ALTER TABLE capsules ADD COLUMN traffic_token text NOT NULL
    DEFAULT replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
-- Ports that anyone may reach.
ALTER TABLE capsules ADD COLUMN public_ports integer[] NOT NULL DEFAULT '{}';

-- One channel, `capsule:UUID`, `key:HASH` or `all`.
CREATE FUNCTION tell_of_capsule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'capsule:' || OLD.id);
    RETURN NULL;
END $$;
CREATE TRIGGER capsule_changed AFTER DELETE OR
    UPDATE OF status, team_id, host_id, envd_token, traffic_token, public_ports ON capsules
    FOR EACH ROW EXECUTE FUNCTION tell_of_capsule();

CREATE FUNCTION tell_of_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'key:' || encode(OLD.key_hash, 'hex'));
    RETURN NULL;
END $$;
CREATE TRIGGER key_changed AFTER DELETE OR UPDATE OF team_id, key_hash, expires_at, revoked_at
    ON api_keys FOR EACH ROW EXECUTE FUNCTION tell_of_key();

CREATE FUNCTION tell_of_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'all');
    RETURN NULL;
END $$;
CREATE TRIGGER host_moved AFTER UPDATE OF address ON hosts
    FOR EACH ROW WHEN (OLD.address IS DISTINCT FROM NEW.address) EXECUTE FUNCTION tell_of_all();

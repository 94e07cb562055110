-- Who may do what, and who did: users, their sign-ins, teams' members, keys, limits, the audit
-- log, usage, events and whom they are told to.

-- E-mails are kept in small letters, so that one has one account.
UPDATE users SET email = lower(email);
ALTER TABLE users ADD CONSTRAINT users_email_small CHECK (email = lower(email));

CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- SHA-256 of the token.
    token_hash bytea NOT NULL UNIQUE,
    -- In a cookie, or kept by a program.
    kind text NOT NULL CHECK (kind IN ('browser', 'program')),
    address text NOT NULL,
    agent text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sessions_by_user ON sessions (user_id);

-- What is mailed, for one use: to activate an account, or to set a password anew.
CREATE TABLE user_tokens (
    token_hash bytea PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('activate', 'reset')),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX user_tokens_by_user ON user_tokens (user_id);

-- Accounts elsewhere by which users sign in.
CREATE TABLE identities (
    provider text NOT NULL,
    subject text NOT NULL,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, subject),
    UNIQUE (user_id, provider)
);

-- Sign-ins elsewhere that are under way, by the hash of their state.
CREATE TABLE sign_ins (
    state_hash bytea PRIMARY KEY,
    provider text NOT NULL,
    verifier text NOT NULL,
    nonce text NOT NULL,
    -- Who adds the provider to their account; none for who signs in.
    user_id uuid REFERENCES users ON DELETE CASCADE,
    expires_at timestamptz NOT NULL
);

-- Failures to sign in, by the hash of an account's e-mail or of an address.
CREATE TABLE sign_in_failures (
    subject bytea PRIMARY KEY,
    failures integer NOT NULL,
    last_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE invitations (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    email text NOT NULL CHECK (email = lower(email)),
    role text NOT NULL CHECK (role IN ('admin', 'member', 'viewer')),
    invited_by uuid REFERENCES users ON DELETE SET NULL,
    token_hash bytea NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    UNIQUE (team_id, email)
);

-- Each user has one default team at most, each team one owner at most.
CREATE UNIQUE INDEX memberships_default ON memberships (user_id) WHERE is_default;
CREATE UNIQUE INDEX memberships_owner ON memberships (team_id) WHERE role = 'owner';
CREATE INDEX memberships_by_user ON memberships (user_id);

-- None of these: all that a key may do.
ALTER TABLE api_keys ADD COLUMN scopes text[] NOT NULL DEFAULT '{}';
-- The one template, or the one capsule, that it is for.
ALTER TABLE api_keys ADD COLUMN template_id uuid REFERENCES templates ON DELETE CASCADE;
ALTER TABLE api_keys ADD COLUMN capsule_id uuid REFERENCES capsules ON DELETE CASCADE;
CREATE INDEX api_keys_by_team ON api_keys (team_id, created_at DESC, id DESC);
CREATE INDEX api_keys_by_user ON api_keys (created_by);

-- None is the platform's default; in `api_keys` none is no limit but the team's.
CREATE TABLE team_limits (
    team_id uuid PRIMARY KEY REFERENCES teams ON DELETE CASCADE,
    capsules integer,
    vcpus integer,
    memory_mib bigint,
    creates_per_sec integer,
    requests_per_sec integer
);
ALTER TABLE api_keys ADD COLUMN max_capsules integer;
ALTER TABLE api_keys ADD COLUMN max_vcpus integer;
ALTER TABLE api_keys ADD COLUMN max_memory_mib bigint;
ALTER TABLE api_keys ADD COLUMN creates_per_sec integer;
ALTER TABLE api_keys ADD COLUMN requests_per_sec integer;

-- The key that it was made with, which may be gone.
ALTER TABLE capsules ADD COLUMN created_by_key uuid;
-- Of a team's capsules most are gone; what is listed and counted are the others.
DROP INDEX capsules_by_team;
CREATE INDEX capsules_live_by_team ON capsules (team_id, created_at DESC, id DESC)
    WHERE status <> 'stopped';
CREATE INDEX capsules_live_by_key ON capsules (created_by_key)
    WHERE status <> 'stopped' AND created_by_key IS NOT NULL;
CREATE INDEX capsules_stopped ON capsules (updated_at) WHERE status = 'stopped';

-- The log outlives what it is of; only a team's end is its own.
ALTER TABLE audit_logs ADD COLUMN address text;
ALTER TABLE audit_logs ADD CONSTRAINT audit_logs_status CHECK (status IN ('ok', 'refused'));
CREATE INDEX audit_logs_by_resource ON audit_logs (team_id, resource_id, created_at DESC, id DESC);
CREATE INDEX audit_logs_by_actor ON audit_logs (team_id, actor_id, created_at DESC, id DESC);
CREATE INDEX audit_logs_by_action ON audit_logs (team_id, action, created_at DESC, id DESC);
CREATE INDEX audit_logs_by_time ON audit_logs (created_at DESC, id DESC);
CREATE INDEX audit_logs_by_user ON audit_logs ((metadata ->> 'user')) WHERE metadata ? 'user';

-- Time during which a capsule computed, or a capsule or snapshot was kept. Closed ones are added
-- up by day in `daily_usage`, in time.
CREATE TABLE usage_spans (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    capsule_id uuid,
    snapshot_id uuid,
    vcpus integer NOT NULL DEFAULT 0,
    memory_mib integer NOT NULL DEFAULT 0,
    storage_mib bigint NOT NULL DEFAULT 0,
    began_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);
CREATE INDEX usage_spans_by_team ON usage_spans (team_id, began_at);
CREATE INDEX usage_spans_open ON usage_spans (coalesce(capsule_id, snapshot_id))
    WHERE ended_at IS NULL;
CREATE INDEX usage_spans_closed ON usage_spans (ended_at) WHERE ended_at IS NOT NULL;
ALTER TABLE daily_usage ALTER COLUMN vcpu_seconds TYPE double precision;
ALTER TABLE daily_usage ALTER COLUMN memory_mib_seconds TYPE double precision;
ALTER TABLE daily_usage ALTER COLUMN storage_mib_seconds TYPE double precision;

-- What happened. `transaction` orders them: whoever reads up to the oldest that is still open
-- misses none.
CREATE TABLE events (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    kind text NOT NULL,
    resource_type text NOT NULL,
    resource_id uuid NOT NULL,
    data jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX events_by_team ON events (team_id, transaction, seq);
CREATE INDEX events_by_time ON events (created_at);

-- URLs that a team has events sent to. A secret is made of the platform's own and `version`.
CREATE TABLE channels (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    name text NOT NULL,
    url text NOT NULL,
    -- Kinds of events; none is all of them.
    events text[] NOT NULL DEFAULT '{}',
    enabled boolean NOT NULL DEFAULT true,
    version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, name)
);

-- The outbox of channels.
CREATE TABLE deliveries (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    channel_id uuid NOT NULL REFERENCES channels ON DELETE CASCADE,
    body jsonb NOT NULL,
    kind text NOT NULL,
    status text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'done', 'failed')),
    attempts integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT now(),
    answer integer,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz
);
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE status = 'waiting';
CREATE INDEX deliveries_by_channel ON deliveries (channel_id, created_at DESC, id DESC);
CREATE INDEX deliveries_done ON deliveries (created_at) WHERE status <> 'waiting';

CREATE FUNCTION emit(team uuid, kind text, resource_type text, resource uuid, data jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    made events;
BEGIN
    INSERT INTO events (team_id, kind, resource_type, resource_id, data)
        VALUES (team, emit.kind, emit.resource_type, resource, emit.data) RETURNING * INTO made;
    INSERT INTO deliveries (channel_id, kind, body) SELECT c.id, emit.kind, to_jsonb(made)
        FROM channels c WHERE c.team_id = team AND c.enabled
        AND (c.events = '{}' OR emit.kind = ANY(c.events));
    PERFORM pg_notify('wrenn_changed', 'events:' || team);
END $$;

-- What a capsule's change of state is to those outside, and to what is paid for.
CREATE FUNCTION capsule_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was text := CASE WHEN TG_OP = 'UPDATE' THEN OLD.status ELSE 'none' END;
    computed boolean := was IN ('running', 'pausing');
    computes boolean := NEW.status IN ('running', 'pausing');
    told text := CASE NEW.status
        WHEN 'starting' THEN 'capsule.created' WHEN 'running' THEN 'capsule.running'
        WHEN 'paused' THEN 'capsule.paused' WHEN 'error' THEN 'capsule.error'
        WHEN 'missing' THEN 'capsule.missing' WHEN 'stopped' THEN 'capsule.destroyed' END;
BEGIN
    IF was = NEW.status THEN
        RETURN NULL;
    END IF;
    IF was = 'none' THEN
        INSERT INTO usage_spans (team_id, capsule_id, storage_mib)
            VALUES (NEW.team_id, NEW.id, NEW.disk_mib);
    END IF;
    IF computes AND NOT computed THEN
        INSERT INTO usage_spans (team_id, capsule_id, vcpus, memory_mib)
            VALUES (NEW.team_id, NEW.id, NEW.vcpus, NEW.memory_mib);
    ELSIF computed AND NOT computes OR NEW.status = 'stopped' THEN
        UPDATE usage_spans SET ended_at = now() WHERE coalesce(capsule_id, snapshot_id) = NEW.id
            AND ended_at IS NULL AND (vcpus > 0 OR NEW.status = 'stopped');
    END IF;
    IF told IS NOT NULL THEN
        PERFORM emit(NEW.team_id, told, 'capsule', NEW.id, jsonb_strip_nulls(jsonb_build_object(
            'previous', nullif(was, 'none'), 'template', NEW.template, 'error', NEW.error)));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER capsule_moved AFTER INSERT OR UPDATE OF status ON capsules
    FOR EACH ROW EXECUTE FUNCTION capsule_moved();

CREATE FUNCTION snapshot_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was boolean := OLD.status = 'ready';
    is_now boolean := TG_OP = 'UPDATE' AND NEW.status = 'ready';
BEGIN
    IF is_now AND NOT was THEN
        INSERT INTO usage_spans (team_id, snapshot_id, storage_mib)
            VALUES (NEW.team_id, NEW.id, (NEW.size_bytes + 1048575) / 1048576);
    ELSIF was AND NOT is_now THEN
        UPDATE usage_spans SET ended_at = now()
            WHERE coalesce(capsule_id, snapshot_id) = OLD.id AND ended_at IS NULL;
    END IF;
    -- One without a name is there for a fork alone.
    IF was <> is_now AND OLD.name IS NOT NULL THEN
        PERFORM emit(OLD.team_id, CASE WHEN is_now THEN 'template.snapshot.created'
            ELSE 'template.snapshot.deleted' END, 'snapshot', OLD.id,
            jsonb_build_object('name', OLD.name));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER snapshot_moved AFTER DELETE OR UPDATE OF status ON snapshots
    FOR EACH ROW EXECUTE FUNCTION snapshot_moved();

CREATE FUNCTION host_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit(coalesce(NEW.team_id, '00000000-0000-0000-0000-000000000000'),
        CASE NEW.status WHEN 'online' THEN 'host.up' ELSE 'host.down' END, 'host', NEW.id,
        jsonb_build_object('name', NEW.name));
    RETURN NULL;
END $$;
CREATE TRIGGER host_moved AFTER UPDATE OF status ON hosts FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('online', 'unreachable'))
    EXECUTE FUNCTION host_moved();

-- What was there before goes on being paid for.
INSERT INTO usage_spans (team_id, capsule_id, storage_mib)
    SELECT team_id, id, disk_mib FROM capsules WHERE status <> 'stopped';
INSERT INTO usage_spans (team_id, capsule_id, vcpus, memory_mib)
    SELECT team_id, id, vcpus, memory_mib FROM capsules WHERE status IN ('running', 'pausing');
INSERT INTO usage_spans (team_id, snapshot_id, storage_mib)
    SELECT team_id, id, (size_bytes + 1048575) / 1048576 FROM snapshots WHERE status = 'ready';

-- Caches hear of users, by `user:UUID`; of sessions, by `session:HASH`; of teams, by `team:UUID`.
CREATE FUNCTION tell_of_user() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'users' THEN
        PERFORM pg_notify('wrenn_changed', 'user:' || OLD.id);
    ELSE
        PERFORM pg_notify('wrenn_changed', 'user:' || coalesce(NEW.user_id, OLD.user_id));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER user_changed AFTER DELETE OR UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION tell_of_user();
CREATE TRIGGER member_changed AFTER INSERT OR UPDATE OR DELETE ON memberships
    FOR EACH ROW EXECUTE FUNCTION tell_of_user();

CREATE FUNCTION tell_of_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'session:' || encode(OLD.token_hash, 'hex'));
    RETURN NULL;
END $$;
CREATE TRIGGER session_changed AFTER DELETE OR UPDATE OF expires_at ON sessions
    FOR EACH ROW EXECUTE FUNCTION tell_of_session();

CREATE FUNCTION tell_of_team() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'team:' || coalesce(NEW.team_id, OLD.team_id));
    RETURN NULL;
END $$;
CREATE TRIGGER limits_changed AFTER INSERT OR UPDATE OR DELETE ON team_limits
    FOR EACH ROW EXECUTE FUNCTION tell_of_team();

-- A key's powers and limits are cached with it.
DROP TRIGGER key_changed ON api_keys;
CREATE TRIGGER key_changed AFTER DELETE OR UPDATE OF team_id, key_hash, created_by, expires_at,
    revoked_at, scopes, template_id, capsule_id, max_capsules, max_vcpus, max_memory_mib,
    creates_per_sec, requests_per_sec, operator ON api_keys
    FOR EACH ROW EXECUTE FUNCTION tell_of_key();

-- The platform's names are its own: whoever makes a template or snapshot of such a name, in
-- whatever way, is refused.
CREATE FUNCTION keep_reserved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.team_id <> '00000000-0000-0000-0000-000000000000' AND EXISTS (SELECT 1 FROM templates
        WHERE team_id = '00000000-0000-0000-0000-000000000000' AND name = NEW.name) THEN
        RAISE unique_violation USING MESSAGE = 'the name is the platform''s',
            CONSTRAINT = 'reserved_name';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER template_name BEFORE INSERT OR UPDATE OF name, team_id ON templates
    FOR EACH ROW EXECUTE FUNCTION keep_reserved();
CREATE TRIGGER snapshot_name BEFORE INSERT OR UPDATE OF name, team_id ON snapshots
    FOR EACH ROW EXECUTE FUNCTION keep_reserved();

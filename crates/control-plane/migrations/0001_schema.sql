-- The whole schema, in the order of resources. A table stands below the tables that it refers to.
-- A trigger and its function stand below the table that they serve.
--
-- Ids are UUIDs. Their prefixed texts exist only on the wire. Only `audit_logs.actor_id` and
-- `audit_logs.resource_id` are texts. Times are UTC.
--
-- Caches and waiting requests hear of changes on the channel `wrenn_changed`. A message names its
-- subject: `capsule:UUID`, `key:HASH`, `host:UUID`, `user:UUID`, `session:HASH`, `team:UUID` or
-- `events:TEAM`. Hashes are hexadecimal SHA-256.

-- ── Teams ──────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE teams (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    slug text NOT NULL UNIQUE,
    -- Weakest tier of isolation that the team accepts, in the words of `types::Isolation`.
    isolation text NOT NULL DEFAULT 'none' CHECK (isolation IN ('none', 'tcg', 'kvm', 'jailed')),
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
-- The platform's own team owns the shared templates. It has no members.
INSERT INTO teams (id, name, slug) VALUES
    ('00000000-0000-0000-0000-000000000000', 'Platform', 'platform');

-- Caches hold a team's tier together with its limits.
CREATE FUNCTION tell_of_tier() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'team:' || NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER tier_changed AFTER UPDATE OF isolation ON teams
    FOR EACH ROW EXECUTE FUNCTION tell_of_tier();

-- Limits of a team. NULL is the platform's default.
CREATE TABLE team_limits (
    team_id uuid PRIMARY KEY REFERENCES teams ON DELETE CASCADE,
    capsules integer,
    vcpus integer,
    memory_mib bigint,
    snapshots integer,
    -- Storage of snapshots and paused capsules, in MiB.
    storage_mib bigint,
    creates_per_sec integer,
    requests_per_sec integer
);

CREATE FUNCTION tell_of_team() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'team:' || coalesce(NEW.team_id, OLD.team_id));
    RETURN NULL;
END $$;
CREATE TRIGGER limits_changed AFTER INSERT OR UPDATE OR DELETE ON team_limits
    FOR EACH ROW EXECUTE FUNCTION tell_of_team();

-- ── Users ──────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE users (
    id uuid PRIMARY KEY,
    -- E-mail in small letters, so that an address has one account.
    email text NOT NULL UNIQUE,
    name text NOT NULL,
    -- NULL for users who sign in elsewhere only, and for inactive accounts.
    password_hash text,
    is_admin boolean NOT NULL DEFAULT false,
    status text NOT NULL CHECK (status IN ('inactive', 'active', 'disabled', 'deleted')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT users_email_small CHECK (email = lower(email))
);

-- Members of teams. The platform's own team has none.
CREATE TABLE memberships (
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member', 'viewer')),
    is_default boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, user_id),
    CHECK (team_id <> '00000000-0000-0000-0000-000000000000')
);
CREATE INDEX memberships_by_user ON memberships (user_id);
-- A user has at most one default team, and a team at most one owner.
CREATE UNIQUE INDEX memberships_default ON memberships (user_id) WHERE is_default;
CREATE UNIQUE INDEX memberships_owner ON memberships (team_id) WHERE role = 'owner';

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

-- ── Sessions and sign-ins ──────────────────────────────────────────────────────────────────────

CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    -- SHA-256 of the token.
    token_hash bytea NOT NULL UNIQUE,
    -- A browser keeps the token in a cookie. A program stores the token itself.
    kind text NOT NULL CHECK (kind IN ('browser', 'program')),
    -- Client address and user agent of the sign-in.
    address text NOT NULL,
    agent text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sessions_by_user ON sessions (user_id);

CREATE FUNCTION tell_of_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'session:' || encode(OLD.token_hash, 'hex'));
    RETURN NULL;
END $$;
CREATE TRIGGER session_changed AFTER DELETE OR UPDATE OF expires_at ON sessions
    FOR EACH ROW EXECUTE FUNCTION tell_of_session();

-- Accounts at other providers, by which users sign in.
CREATE TABLE identities (
    provider text NOT NULL,
    subject text NOT NULL,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, subject),
    UNIQUE (user_id, provider)
);

-- Sign-ins at other providers that are under way.
CREATE TABLE sign_ins (
    -- SHA-256 of the state that the provider returns.
    state_hash bytea PRIMARY KEY,
    provider text NOT NULL,
    verifier text NOT NULL,
    nonce text NOT NULL,
    -- User who adds the provider to their account. NULL for a sign-in.
    user_id uuid REFERENCES users ON DELETE CASCADE,
    -- Session that asked to add the provider. No other session can complete the request.
    session_id uuid REFERENCES sessions ON DELETE CASCADE,
    expires_at timestamptz NOT NULL
);
CREATE INDEX sign_ins_by_session ON sign_ins (session_id) WHERE session_id IS NOT NULL;

-- Failed sign-ins.
CREATE TABLE sign_in_failures (
    -- Hash of an account's e-mail, or of a client address.
    subject bytea PRIMARY KEY,
    failures integer NOT NULL,
    last_at timestamptz NOT NULL DEFAULT now()
);

-- ── Hosts ──────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE hosts (
    id uuid PRIMARY KEY,
    -- Team that alone may use the host. NULL means every team.
    team_id uuid REFERENCES teams ON DELETE CASCADE,
    name text NOT NULL,
    address text NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'online', 'unreachable')),
    -- A draining host takes no more capsules. Its own capsules are paused.
    draining boolean NOT NULL DEFAULT false,
    tags text[] NOT NULL DEFAULT '{}',
    -- Facts of the last heartbeat, down to `load`.
    arch text NOT NULL DEFAULT '',
    driver text NOT NULL DEFAULT '',
    accelerator text NOT NULL DEFAULT '',
    isolation text NOT NULL DEFAULT 'none',
    version text NOT NULL DEFAULT '',
    templates text[] NOT NULL DEFAULT '{}',
    cpu_cores integer NOT NULL DEFAULT 0,
    -- Most vCPUs, memory and disk of all capsules together.
    max_vcpus bigint NOT NULL DEFAULT 0,
    memory_mib bigint NOT NULL DEFAULT 0,
    disk_mib bigint NOT NULL DEFAULT 0,
    -- True if the host can reach the platform's object store.
    store boolean NOT NULL DEFAULT false,
    load jsonb NOT NULL DEFAULT '{}',
    -- Fingerprint of the certificate that was issued last.
    cert_fingerprint text,
    -- Fingerprint of the certificate before. It stays valid until the host uses the last.
    cert_previous text,
    cert_expires_at timestamptz,
    -- Number that grows with each enrolment, and invalidates what earlier enrolments issued.
    enrolment integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_heartbeat_at timestamptz
)
-- Heartbeats update the same few pages for ever, so the pages keep free space.
WITH (fillfactor = 50);
CREATE UNIQUE INDEX hosts_by_name ON hosts (name);

CREATE FUNCTION tell_of_host() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'host:' || coalesce(NEW.id, OLD.id));
    RETURN NULL;
END $$;
CREATE TRIGGER host_came_or_went AFTER INSERT OR DELETE ON hosts
    FOR EACH ROW EXECUTE FUNCTION tell_of_host();
-- A heartbeat that changes no column below announces nothing.
CREATE TRIGGER host_changed AFTER UPDATE ON hosts FOR EACH ROW WHEN (
    (OLD.address, OLD.status, OLD.draining, OLD.tags, OLD.templates, OLD.team_id, OLD.store,
     OLD.cert_fingerprint, OLD.cert_previous, OLD.max_vcpus, OLD.memory_mib, OLD.disk_mib)
    IS DISTINCT FROM
    (NEW.address, NEW.status, NEW.draining, NEW.tags, NEW.templates, NEW.team_id, NEW.store,
     NEW.cert_fingerprint, NEW.cert_previous, NEW.max_vcpus, NEW.memory_mib, NEW.disk_mib))
    EXECUTE FUNCTION tell_of_host();

-- Writes the event of a host that comes online or becomes unreachable.
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

-- ── Templates ──────────────────────────────────────────────────────────────────────────────────

CREATE TABLE templates (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    name text NOT NULL,
    vcpus integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib integer NOT NULL,
    -- Weakest tier of isolation for capsules of the template.
    isolation text NOT NULL DEFAULT 'none' CHECK (isolation IN ('none', 'tcg', 'kvm', 'jailed')),
    default_user text NOT NULL DEFAULT 'user',
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, name)
);

-- Refuses a team's template or snapshot with the name of one of the platform's templates.
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

-- Builds of templates. No program uses the table yet.
CREATE TABLE builds (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    template_id uuid NOT NULL REFERENCES templates ON DELETE CASCADE,
    status text NOT NULL CHECK (status IN ('waiting', 'building', 'ready', 'error')),
    recipe jsonb NOT NULL DEFAULT '[]',
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);

-- ── Capsules ───────────────────────────────────────────────────────────────────────────────────

CREATE TABLE capsules (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams,
    host_id uuid REFERENCES hosts,
    template_id uuid REFERENCES templates ON DELETE SET NULL,
    -- Name of the template, which may be gone.
    template text NOT NULL,
    -- Snapshot that the capsule began from, which may be gone.
    snapshot_id uuid,
    -- Key that made the capsule, which may be gone.
    created_by_key uuid,
    status text NOT NULL CHECK (status IN ('starting', 'running', 'pausing', 'paused',
        'resuming', 'missing', 'error', 'stopping', 'stopped')),
    -- Number that grows with each change of status. Every change names the number that it saw.
    generation bigint NOT NULL DEFAULT 1,
    -- Name and parameters of the pause or resume under way. A request for the same operation joins
    -- it, on whichever control plane. An empty name is joined by every request.
    operation text NOT NULL DEFAULT '',
    -- Generation of the command that placed the capsule on its host. Anything earlier on the host
    -- is a leftover. 0 if the capsule never moved.
    placed bigint NOT NULL DEFAULT 0,
    error text,
    vcpus integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib integer NOT NULL,
    -- Idle time until the end, in seconds. 0 for none.
    timeout_sec integer NOT NULL DEFAULT 0,
    -- End of the capsule's lifetime. NULL for none. The host acts on a copy of its own.
    ends_at timestamptz,
    -- Action at either end.
    on_timeout text NOT NULL DEFAULT 'pause' CHECK (on_timeout IN ('pause', 'pause_disk', 'kill')),
    -- True if traffic wakes a paused capsule.
    auto_resume boolean NOT NULL DEFAULT false,
    envd_token text NOT NULL,
    -- Credential for the capsule's ports.
    traffic_token text NOT NULL
        DEFAULT replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''),
    -- Number in every preview link. A larger number ends all older links of the capsule.
    link_generation bigint NOT NULL DEFAULT 1,
    -- Ports that everybody may reach.
    public_ports integer[] NOT NULL DEFAULT '{}',
    -- True if everybody may reach every port except envd's.
    public_traffic boolean NOT NULL DEFAULT false,
    -- Host header of forwarded requests. NULL for the public name.
    host_header text,
    -- Rules for outgoing connections, in the form of `types::Egress`.
    egress jsonb NOT NULL DEFAULT '{}',
    -- True if E2B's API made the capsule. The proxy then answers in that API's form.
    e2b boolean NOT NULL DEFAULT false,
    -- Number of the capsule's snapshot in the store. 0 for none.
    stored bigint NOT NULL DEFAULT 0,
    -- Name of that upload. Empty if the number alone names the upload.
    stored_tree text NOT NULL DEFAULT '',
    -- True if the capsule has not run since that snapshot.
    stored_newest boolean NOT NULL DEFAULT false,
    -- Bytes on the host's disk, as the host reports them. A shared file counts once.
    storage_bytes bigint NOT NULL DEFAULT 0,
    -- True while the guest is stopped because the host's disk is full.
    disk_full boolean NOT NULL DEFAULT false,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    last_active_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- Most capsules of a team are stopped, and only the others are listed and counted.
CREATE INDEX capsules_live_by_team ON capsules (team_id, created_at DESC, id DESC)
    WHERE status <> 'stopped';
CREATE INDEX capsules_live_by_host ON capsules (host_id) WHERE status <> 'stopped';
CREATE INDEX capsules_live_by_key ON capsules (created_by_key)
    WHERE status <> 'stopped' AND created_by_key IS NOT NULL;
CREATE INDEX capsules_stopped ON capsules (updated_at) WHERE status = 'stopped';

-- The proxy's caches hold each column that the trigger names.
CREATE FUNCTION tell_of_capsule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'capsule:' || OLD.id);
    RETURN NULL;
END $$;
CREATE TRIGGER capsule_changed AFTER DELETE OR
    UPDATE OF status, team_id, host_id, envd_token, traffic_token, link_generation, public_ports,
    public_traffic, host_header, auto_resume ON capsules
    FOR EACH ROW EXECUTE FUNCTION tell_of_capsule();

-- Opens and closes usage intervals when a capsule changes its state, and writes the event.
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

-- Idempotency keys of creates, written together with the capsule. The capsule's state tells how
-- far the create got.
CREATE TABLE idempotency_keys (
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    key text NOT NULL,
    -- Hash of the request.
    request_hash bytea NOT NULL,
    capsule_id uuid NOT NULL REFERENCES capsules ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, key)
);
CREATE INDEX idempotency_keys_by_capsule ON idempotency_keys (capsule_id);
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (created_at);

-- Measurements of capsules. No program uses the table yet.
CREATE TABLE capsule_metrics (
    capsule_id uuid NOT NULL REFERENCES capsules ON DELETE CASCADE,
    at timestamptz NOT NULL,
    cpu_percent real NOT NULL,
    memory_bytes bigint NOT NULL,
    disk_bytes bigint NOT NULL,
    PRIMARY KEY (capsule_id, at)
);

-- ── Snapshots ──────────────────────────────────────────────────────────────────────────────────

-- Snapshots that users take of capsules. A snapshot without a name belongs to a fork, and is
-- removed with it.
CREATE TABLE snapshots (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    capsule_id uuid REFERENCES capsules ON DELETE SET NULL,
    template_id uuid REFERENCES templates ON DELETE CASCADE,
    host_id uuid REFERENCES hosts,
    name text,
    -- `making` until the host has the snapshot. `removing` until the host has removed it.
    status text NOT NULL DEFAULT 'making' CHECK (status IN ('making', 'ready', 'removing')),
    -- Template and sizes of the captured capsule.
    template text NOT NULL,
    vcpus integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib integer NOT NULL,
    size_bytes bigint NOT NULL DEFAULT 0,
    -- Bytes on the host's disk, as the host reports them. A shared file counts once.
    storage_bytes bigint NOT NULL DEFAULT 0,
    -- True if the store has the whole snapshot.
    stored boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, name)
);
CREATE INDEX snapshots_by_team ON snapshots (team_id, created_at DESC, id DESC);
CREATE INDEX snapshots_by_host ON snapshots (host_id);
CREATE TRIGGER snapshot_name BEFORE INSERT OR UPDATE OF name, team_id ON snapshots
    FOR EACH ROW EXECUTE FUNCTION keep_reserved();

-- Opens and closes usage intervals when a snapshot comes or goes. Only a snapshot with a name has
-- events.
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
    IF was <> is_now AND OLD.name IS NOT NULL THEN
        PERFORM emit(OLD.team_id, CASE WHEN is_now THEN 'template.snapshot.created'
            ELSE 'template.snapshot.deleted' END, 'snapshot', OLD.id,
            jsonb_build_object('name', OLD.name));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER snapshot_moved AFTER DELETE OR UPDATE OF status ON snapshots
    FOR EACH ROW EXECUTE FUNCTION snapshot_moved();

-- ── Keys ───────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    name text NOT NULL,
    -- SHA-256 of the key.
    key_hash bytea NOT NULL UNIQUE,
    key_prefix text NOT NULL,
    -- User who made the key, or who made the key that made it.
    created_by uuid REFERENCES users ON DELETE SET NULL,
    -- Key that this key was made with. A revocation also revokes the keys made with a key.
    made_by_key uuid REFERENCES api_keys ON DELETE SET NULL,
    -- True if the key may act on the whole platform.
    operator boolean NOT NULL DEFAULT false,
    -- Permitted actions. An empty list permits all of them.
    scopes text[] NOT NULL DEFAULT '{}',
    -- Template or capsule that the key is restricted to.
    template_id uuid REFERENCES templates ON DELETE CASCADE,
    capsule_id uuid REFERENCES capsules ON DELETE CASCADE,
    -- Limits of the key. NULL leaves only the team's limit.
    max_capsules integer,
    max_vcpus integer,
    max_memory_mib bigint,
    creates_per_sec integer,
    requests_per_sec integer,
    -- Key that counts this key's requests and creates. NULL for the key itself.
    counted_as uuid REFERENCES api_keys ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_by_team ON api_keys (team_id, created_at DESC, id DESC);
CREATE INDEX api_keys_by_user ON api_keys (created_by);
CREATE INDEX api_keys_by_maker ON api_keys (made_by_key) WHERE made_by_key IS NOT NULL;

-- Caches hold a key's rights and limits together with the key.
CREATE FUNCTION tell_of_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'key:' || encode(OLD.key_hash, 'hex'));
    RETURN NULL;
END $$;
CREATE TRIGGER key_changed AFTER DELETE OR UPDATE OF team_id, key_hash, created_by, expires_at,
    revoked_at, scopes, template_id, capsule_id, max_capsules, max_vcpus, max_memory_mib,
    creates_per_sec, requests_per_sec, operator ON api_keys
    FOR EACH ROW EXECUTE FUNCTION tell_of_key();

-- ── Tokens with a maker ────────────────────────────────────────────────────────────────────────

-- A token or invitation ends with the rights of its maker. `created_by` is the maker, or who made
-- the key `made_by_key`.

-- Reports whether a key is valid now.
CREATE FUNCTION key_stands(key uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM api_keys k WHERE k.id = key AND k.revoked_at IS NULL
        AND (k.expires_at IS NULL OR k.expires_at > now()))
$$;

-- Reports whether the maker still has an operator's rights. The platform itself has no maker and
-- always has these rights.
CREATE FUNCTION operator_stands(maker uuid, key uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT (maker IS NULL OR EXISTS (SELECT 1 FROM users u
            WHERE u.id = maker AND u.status = 'active' AND u.is_admin))
        AND (key IS NULL OR key_stands(key)
            AND EXISTS (SELECT 1 FROM api_keys k WHERE k.id = key AND k.operator))
$$;

-- Reports whether the maker may still invite users to the team. The platform itself may not.
CREATE FUNCTION inviter_stands(team uuid, maker uuid, key uuid) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT (maker IS NOT NULL OR key IS NOT NULL)
        AND (maker IS NULL OR EXISTS (SELECT 1 FROM memberships m JOIN users u ON u.id = m.user_id
            WHERE m.team_id = team AND m.user_id = maker AND m.role IN ('owner', 'admin')
            AND u.status = 'active'))
        AND (key IS NULL OR key_stands(key))
$$;

-- Mailed tokens for one use: the activation of an account, or a new password.
CREATE TABLE user_tokens (
    token_hash bytea PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('activate', 'reset')),
    -- Password and name of a sign-up. They change the account when the token is used.
    password_hash text,
    name text,
    created_by uuid REFERENCES users ON DELETE CASCADE,
    made_by_key uuid REFERENCES api_keys ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX user_tokens_by_user ON user_tokens (user_id);

-- Invitations to teams.
CREATE TABLE invitations (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    email text NOT NULL CHECK (email = lower(email)),
    role text NOT NULL CHECK (role IN ('admin', 'member', 'viewer')),
    token_hash bytea NOT NULL UNIQUE,
    -- Maker of the invitation, or of the key that made it.
    invited_by uuid REFERENCES users ON DELETE SET NULL,
    made_by_key uuid REFERENCES api_keys ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    UNIQUE (team_id, email)
);
CREATE INDEX invitations_by_maker ON invitations (invited_by);

-- Tokens of hosts: one for registration, then a chain of tokens for renewals.
CREATE TABLE host_tokens (
    id uuid PRIMARY KEY,
    host_id uuid NOT NULL REFERENCES hosts ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('registration', 'refresh')),
    token_hash bytea NOT NULL UNIQUE,
    -- Token that this refresh token was issued for.
    parent_id uuid REFERENCES host_tokens ON DELETE CASCADE,
    -- Hash of the first request that used the token. The token is invalid with another.
    bound_to bytea,
    created_by uuid REFERENCES users ON DELETE CASCADE,
    made_by_key uuid REFERENCES api_keys ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX host_tokens_by_host ON host_tokens (host_id);

-- ── Channels and events ────────────────────────────────────────────────────────────────────────

-- URLs that receive a team's events. A channel's secret is derived from the platform's own secret
-- and from `version`.
CREATE TABLE channels (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    name text NOT NULL,
    url text NOT NULL,
    -- Kinds of events to send. An empty list means all of them.
    events text[] NOT NULL DEFAULT '{}',
    enabled boolean NOT NULL DEFAULT true,
    version integer NOT NULL DEFAULT 1,
    created_by uuid REFERENCES users ON DELETE SET NULL,
    made_by_key uuid REFERENCES api_keys ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, name)
);
CREATE INDEX channels_by_maker ON channels (created_by) WHERE created_by IS NOT NULL;
-- Finds the channels of expired keys without reading all others.
CREATE INDEX channels_by_key ON channels (made_by_key) WHERE enabled AND made_by_key IS NOT NULL;

-- Outbox of the channels.
CREATE TABLE deliveries (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    channel_id uuid NOT NULL REFERENCES channels ON DELETE CASCADE,
    body jsonb NOT NULL,
    kind text NOT NULL,
    status text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'done', 'failed')),
    attempts integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT now(),
    -- HTTP status of the last answer.
    answer integer,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz
);
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE status = 'waiting';
CREATE INDEX deliveries_by_channel ON deliveries (channel_id, created_at DESC, id DESC);
CREATE INDEX deliveries_done ON deliveries (created_at) WHERE status <> 'waiting';

-- Events, ordered by transaction and number. A reader stops before the oldest open transaction, so
-- it misses none.
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

-- Writes an event, and a delivery for each channel that wants it.
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

-- ── Audit log ──────────────────────────────────────────────────────────────────────────────────

-- Entries outlive the resources that they name, and end only with their team.
CREATE TABLE audit_logs (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    actor_type text NOT NULL CHECK (actor_type IN ('user', 'api_key', 'host', 'system')),
    actor_id text NOT NULL,
    -- Address of the client.
    address text,
    resource_type text NOT NULL,
    resource_id text NOT NULL,
    action text NOT NULL,
    status text NOT NULL CONSTRAINT audit_logs_status CHECK (status IN ('ok', 'refused')),
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_logs_by_team ON audit_logs (team_id, created_at DESC, id DESC);
CREATE INDEX audit_logs_by_resource ON audit_logs (team_id, resource_id, created_at DESC, id DESC);
CREATE INDEX audit_logs_by_actor ON audit_logs (team_id, actor_id, created_at DESC, id DESC);
CREATE INDEX audit_logs_by_action ON audit_logs (team_id, action, created_at DESC, id DESC);
CREATE INDEX audit_logs_by_time ON audit_logs (created_at DESC, id DESC);
CREATE INDEX audit_logs_by_user ON audit_logs ((metadata ->> 'user')) WHERE metadata ? 'user';

-- ── Usage ──────────────────────────────────────────────────────────────────────────────────────

-- Intervals in which a capsule ran, or in which a capsule or snapshot was stored. Closed intervals
-- are later added to `daily_usage`.
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

-- Sums of a team's closed intervals, by day.
CREATE TABLE daily_usage (
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    day date NOT NULL,
    vcpu_seconds double precision NOT NULL DEFAULT 0,
    memory_mib_seconds double precision NOT NULL DEFAULT 0,
    storage_mib_seconds double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (team_id, day)
);

-- ── The platform itself ────────────────────────────────────────────────────────────────────────

-- Secrets that all control planes share, for example to sign tokens.
CREATE TABLE secrets (
    name text PRIMARY KEY,
    value bytea NOT NULL
);

-- Number of the oldest migration that a program must know. A migration raises the number if older
-- programs cannot work with its schema.
CREATE TABLE schema_floor (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    version bigint NOT NULL
);
INSERT INTO schema_floor (version) VALUES (1);

-- The whole schema of the product. Ids are UUIDs; their prefixed texts exist only on the
-- wire. TEXT ids: `audit_logs.actor_id` and `resource_id`, which outlive what they name.

CREATE TABLE teams (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    slug text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);
-- The platform's own team: owns shared templates; nobody is its member.
INSERT INTO teams (id, name, slug) VALUES
    ('00000000-0000-0000-0000-000000000000', 'Platform', 'platform');

CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text NOT NULL UNIQUE,
    name text NOT NULL,
    password_hash text,
    is_admin boolean NOT NULL DEFAULT false,
    status text NOT NULL CHECK (status IN ('inactive', 'active', 'disabled', 'deleted')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);

CREATE TABLE memberships (
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member', 'viewer')),
    is_default boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, user_id),
    CHECK (team_id <> '00000000-0000-0000-0000-000000000000')
);

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    name text NOT NULL,
    -- SHA-256 of the key.
    key_hash bytea NOT NULL UNIQUE,
    key_prefix text NOT NULL,
    created_by uuid REFERENCES users ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz
);

CREATE TABLE hosts (
    id uuid PRIMARY KEY,
    team_id uuid REFERENCES teams ON DELETE CASCADE,
    name text NOT NULL,
    address text NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'online', 'unreachable', 'draining', 'offline')),
    arch text NOT NULL DEFAULT '',
    driver text NOT NULL DEFAULT '',
    accelerator text NOT NULL DEFAULT '',
    version text NOT NULL DEFAULT '',
    templates text[] NOT NULL DEFAULT '{}',
    cpu_cores integer NOT NULL DEFAULT 0,
    memory_mib bigint NOT NULL DEFAULT 0,
    disk_mib bigint NOT NULL DEFAULT 0,
    tags text[] NOT NULL DEFAULT '{}',
    cert_fingerprint text,
    cert_expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_heartbeat_at timestamptz
);

CREATE TABLE host_tokens (
    id uuid PRIMARY KEY,
    host_id uuid NOT NULL REFERENCES hosts ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('registration', 'refresh')),
    token_hash bytea NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    revoked_at timestamptz
);

CREATE TABLE templates (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    name text NOT NULL,
    vcpus integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib integer NOT NULL,
    default_user text NOT NULL DEFAULT 'user',
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, name)
);

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

CREATE TABLE capsules (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams,
    host_id uuid REFERENCES hosts,
    template_id uuid REFERENCES templates ON DELETE SET NULL,
    template text NOT NULL,
    status text NOT NULL CHECK (status IN ('starting', 'running', 'pausing', 'paused',
        'resuming', 'missing', 'error', 'stopping', 'stopped')),
    -- Grows with each change of status; every change names the one it saw.
    generation bigint NOT NULL DEFAULT 1,
    vcpus integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib integer NOT NULL,
    timeout_sec integer NOT NULL DEFAULT 0,
    envd_token text NOT NULL,
    error text,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    last_active_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX capsules_by_team ON capsules (team_id, created_at DESC, id DESC);
CREATE INDEX capsules_live_by_host ON capsules (host_id) WHERE status <> 'stopped';

CREATE TABLE snapshots (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    capsule_id uuid REFERENCES capsules ON DELETE SET NULL,
    template_id uuid REFERENCES templates ON DELETE CASCADE,
    host_id uuid REFERENCES hosts,
    name text,
    generation bigint NOT NULL,
    size_bytes bigint NOT NULL,
    manifest jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, name)
);

CREATE TABLE audit_logs (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    actor_type text NOT NULL CHECK (actor_type IN ('user', 'api_key', 'host', 'system')),
    actor_id text NOT NULL,
    resource_type text NOT NULL,
    resource_id text NOT NULL,
    action text NOT NULL,
    status text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_logs_by_team ON audit_logs (team_id, created_at DESC, id DESC);

CREATE TABLE capsule_metrics (
    capsule_id uuid NOT NULL REFERENCES capsules ON DELETE CASCADE,
    at timestamptz NOT NULL,
    cpu_percent real NOT NULL,
    memory_bytes bigint NOT NULL,
    disk_bytes bigint NOT NULL,
    PRIMARY KEY (capsule_id, at)
);

CREATE TABLE daily_usage (
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    day date NOT NULL,
    vcpu_seconds bigint NOT NULL DEFAULT 0,
    memory_mib_seconds bigint NOT NULL DEFAULT 0,
    storage_mib_seconds bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (team_id, day)
);

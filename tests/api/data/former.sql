-- Dump of a database at the last of the 14 former migrations, with rows in every table. Made by
-- `pg_dump --inserts` of PostgreSQL 15, without its comments and its commands to `psql`. Times by
-- which rows grow old are in the year 2100, so that no control plane removes the rows.

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET client_min_messages = warning;
SET row_security = off;

CREATE FUNCTION public.capsule_moved() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.emit(team uuid, kind text, resource_type text, resource uuid, data jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.host_moved() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM emit(coalesce(NEW.team_id, '00000000-0000-0000-0000-000000000000'),
        CASE NEW.status WHEN 'online' THEN 'host.up' ELSE 'host.down' END, 'host', NEW.id,
        jsonb_build_object('name', NEW.name));
    RETURN NULL;
END $$;

CREATE FUNCTION public.inviter_stands(team uuid, maker uuid, key uuid) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT (maker IS NOT NULL OR key IS NOT NULL)
        AND (maker IS NULL OR EXISTS (SELECT 1 FROM memberships m JOIN users u ON u.id = m.user_id
            WHERE m.team_id = team AND m.user_id = maker AND m.role IN ('owner', 'admin')
            AND u.status = 'active'))
        AND (key IS NULL OR key_stands(key))
$$;

CREATE FUNCTION public.keep_reserved() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NEW.team_id <> '00000000-0000-0000-0000-000000000000' AND EXISTS (SELECT 1 FROM templates
        WHERE team_id = '00000000-0000-0000-0000-000000000000' AND name = NEW.name) THEN
        RAISE unique_violation USING MESSAGE = 'the name is the platform''s',
            CONSTRAINT = 'reserved_name';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION public.key_stands(key uuid) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT EXISTS (SELECT 1 FROM api_keys k WHERE k.id = key AND k.revoked_at IS NULL
        AND (k.expires_at IS NULL OR k.expires_at > now()))
$$;

CREATE FUNCTION public.operator_stands(maker uuid, key uuid) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT (maker IS NULL OR EXISTS (SELECT 1 FROM users u
            WHERE u.id = maker AND u.status = 'active' AND u.is_admin))
        AND (key IS NULL OR key_stands(key)
            AND EXISTS (SELECT 1 FROM api_keys k WHERE k.id = key AND k.operator))
$$;

CREATE FUNCTION public.snapshot_moved() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.tell_of_capsule() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'capsule:' || OLD.id);
    RETURN NULL;
END $$;

CREATE FUNCTION public.tell_of_host() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'host:' || coalesce(NEW.id, OLD.id));
    RETURN NULL;
END $$;

CREATE FUNCTION public.tell_of_key() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'key:' || encode(OLD.key_hash, 'hex'));
    RETURN NULL;
END $$;

CREATE FUNCTION public.tell_of_session() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'session:' || encode(OLD.token_hash, 'hex'));
    RETURN NULL;
END $$;

CREATE FUNCTION public.tell_of_team() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'team:' || coalesce(NEW.team_id, OLD.team_id));
    RETURN NULL;
END $$;

CREATE FUNCTION public.tell_of_tier() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'team:' || NEW.id);
    RETURN NULL;
END $$;

CREATE FUNCTION public.tell_of_user() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF TG_TABLE_NAME = 'users' THEN
        PERFORM pg_notify('wrenn_changed', 'user:' || OLD.id);
    ELSE
        PERFORM pg_notify('wrenn_changed', 'user:' || coalesce(NEW.user_id, OLD.user_id));
    END IF;
    RETURN NULL;
END $$;

CREATE TABLE public._sqlx_migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);

CREATE TABLE public.api_keys (
    id uuid NOT NULL,
    team_id uuid NOT NULL,
    name text NOT NULL,
    key_hash bytea NOT NULL,
    key_prefix text NOT NULL,
    created_by uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone,
    last_used_at timestamp with time zone,
    revoked_at timestamp with time zone,
    operator boolean DEFAULT false NOT NULL,
    scopes text[] DEFAULT '{}'::text[] NOT NULL,
    template_id uuid,
    capsule_id uuid,
    max_capsules integer,
    max_vcpus integer,
    max_memory_mib bigint,
    creates_per_sec integer,
    requests_per_sec integer,
    made_by_key uuid,
    counted_as uuid
);

CREATE TABLE public.audit_logs (
    id uuid NOT NULL,
    team_id uuid NOT NULL,
    actor_type text NOT NULL,
    actor_id text NOT NULL,
    resource_type text NOT NULL,
    resource_id text NOT NULL,
    action text NOT NULL,
    status text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    address text,
    CONSTRAINT audit_logs_actor_type_check CHECK ((actor_type = ANY (ARRAY['user'::text, 'api_key'::text, 'host'::text, 'system'::text]))),
    CONSTRAINT audit_logs_status CHECK ((status = ANY (ARRAY['ok'::text, 'refused'::text])))
);

CREATE TABLE public.builds (
    id uuid NOT NULL,
    team_id uuid NOT NULL,
    template_id uuid NOT NULL,
    status text NOT NULL,
    recipe jsonb DEFAULT '[]'::jsonb NOT NULL,
    error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    CONSTRAINT builds_status_check CHECK ((status = ANY (ARRAY['waiting'::text, 'building'::text, 'ready'::text, 'error'::text])))
);

CREATE TABLE public.capsule_metrics (
    capsule_id uuid NOT NULL,
    at timestamp with time zone NOT NULL,
    cpu_percent real NOT NULL,
    memory_bytes bigint NOT NULL,
    disk_bytes bigint NOT NULL
);

CREATE TABLE public.capsules (
    id uuid NOT NULL,
    team_id uuid NOT NULL,
    host_id uuid,
    template_id uuid,
    template text NOT NULL,
    status text NOT NULL,
    generation bigint DEFAULT 1 NOT NULL,
    vcpus integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib integer NOT NULL,
    timeout_sec integer DEFAULT 0 NOT NULL,
    envd_token text NOT NULL,
    error text,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    last_active_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    traffic_token text DEFAULT replace(((gen_random_uuid())::text || (gen_random_uuid())::text), '-'::text, ''::text) NOT NULL,
    public_ports integer[] DEFAULT '{}'::integer[] NOT NULL,
    ends_at timestamp with time zone,
    on_timeout text DEFAULT 'pause'::text NOT NULL,
    auto_resume boolean DEFAULT false NOT NULL,
    snapshot_id uuid,
    stored bigint DEFAULT 0 NOT NULL,
    stored_newest boolean DEFAULT false NOT NULL,
    created_by_key uuid,
    public_traffic boolean DEFAULT false NOT NULL,
    host_header text,
    egress jsonb DEFAULT '{}'::jsonb NOT NULL,
    e2b boolean DEFAULT false NOT NULL,
    storage_bytes bigint DEFAULT 0 NOT NULL,
    disk_full boolean DEFAULT false NOT NULL,
    stored_tree text DEFAULT ''::text NOT NULL,
    placed bigint DEFAULT 0 NOT NULL,
    link_generation bigint DEFAULT 1 NOT NULL,
    operation text DEFAULT ''::text NOT NULL,
    CONSTRAINT capsules_on_timeout_check CHECK ((on_timeout = ANY (ARRAY['pause'::text, 'pause_disk'::text, 'kill'::text]))),
    CONSTRAINT capsules_status_check CHECK ((status = ANY (ARRAY['starting'::text, 'running'::text, 'pausing'::text, 'paused'::text, 'resuming'::text, 'missing'::text, 'error'::text, 'stopping'::text, 'stopped'::text])))
);

CREATE TABLE public.channels (
    id uuid NOT NULL,
    team_id uuid NOT NULL,
    name text NOT NULL,
    url text NOT NULL,
    events text[] DEFAULT '{}'::text[] NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    created_by uuid,
    made_by_key uuid
);

CREATE TABLE public.daily_usage (
    team_id uuid NOT NULL,
    day date NOT NULL,
    vcpu_seconds double precision DEFAULT 0 NOT NULL,
    memory_mib_seconds double precision DEFAULT 0 NOT NULL,
    storage_mib_seconds double precision DEFAULT 0 NOT NULL
);

CREATE TABLE public.deliveries (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    channel_id uuid NOT NULL,
    body jsonb NOT NULL,
    kind text NOT NULL,
    status text DEFAULT 'waiting'::text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_at timestamp with time zone DEFAULT now() NOT NULL,
    answer integer,
    error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    done_at timestamp with time zone,
    CONSTRAINT deliveries_status_check CHECK ((status = ANY (ARRAY['waiting'::text, 'done'::text, 'failed'::text])))
);

CREATE TABLE public.events (
    seq bigint NOT NULL,
    transaction xid8 DEFAULT pg_current_xact_id() NOT NULL,
    team_id uuid NOT NULL,
    kind text NOT NULL,
    resource_type text NOT NULL,
    resource_id uuid NOT NULL,
    data jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE public.events ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.events_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.host_tokens (
    id uuid NOT NULL,
    host_id uuid NOT NULL,
    kind text NOT NULL,
    token_hash bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    used_at timestamp with time zone,
    revoked_at timestamp with time zone,
    parent_id uuid,
    bound_to bytea,
    created_by uuid,
    made_by_key uuid,
    CONSTRAINT host_tokens_kind_check CHECK ((kind = ANY (ARRAY['registration'::text, 'refresh'::text])))
);

CREATE TABLE public.hosts (
    id uuid NOT NULL,
    team_id uuid,
    name text NOT NULL,
    address text NOT NULL,
    status text NOT NULL,
    arch text DEFAULT ''::text NOT NULL,
    driver text DEFAULT ''::text NOT NULL,
    accelerator text DEFAULT ''::text NOT NULL,
    version text DEFAULT ''::text NOT NULL,
    templates text[] DEFAULT '{}'::text[] NOT NULL,
    cpu_cores integer DEFAULT 0 NOT NULL,
    memory_mib bigint DEFAULT 0 NOT NULL,
    disk_mib bigint DEFAULT 0 NOT NULL,
    tags text[] DEFAULT '{}'::text[] NOT NULL,
    cert_fingerprint text,
    cert_expires_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_heartbeat_at timestamp with time zone,
    draining boolean DEFAULT false NOT NULL,
    max_vcpus bigint DEFAULT 0 NOT NULL,
    store boolean DEFAULT false NOT NULL,
    load jsonb DEFAULT '{}'::jsonb NOT NULL,
    cert_previous text,
    enrolment integer DEFAULT 0 NOT NULL,
    isolation text DEFAULT 'none'::text NOT NULL,
    CONSTRAINT hosts_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'online'::text, 'unreachable'::text])))
)
WITH (fillfactor='50');

CREATE TABLE public.idempotency_keys (
    team_id uuid NOT NULL,
    key text NOT NULL,
    request_hash bytea NOT NULL,
    capsule_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.identities (
    provider text NOT NULL,
    subject text NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.invitations (
    id uuid NOT NULL,
    team_id uuid NOT NULL,
    email text NOT NULL,
    role text NOT NULL,
    invited_by uuid,
    token_hash bytea NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    made_by_key uuid,
    CONSTRAINT invitations_email_check CHECK ((email = lower(email))),
    CONSTRAINT invitations_role_check CHECK ((role = ANY (ARRAY['admin'::text, 'member'::text, 'viewer'::text])))
);

CREATE TABLE public.memberships (
    team_id uuid NOT NULL,
    user_id uuid NOT NULL,
    role text NOT NULL,
    is_default boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT memberships_role_check CHECK ((role = ANY (ARRAY['owner'::text, 'admin'::text, 'member'::text, 'viewer'::text]))),
    CONSTRAINT memberships_team_id_check CHECK ((team_id <> '00000000-0000-0000-0000-000000000000'::uuid))
);

CREATE TABLE public.schema_floor (
    singleton boolean DEFAULT true NOT NULL,
    version bigint NOT NULL,
    CONSTRAINT schema_floor_singleton_check CHECK (singleton)
);

CREATE TABLE public.secrets (
    name text NOT NULL,
    value bytea NOT NULL
);

CREATE TABLE public.sessions (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    token_hash bytea NOT NULL,
    kind text NOT NULL,
    address text NOT NULL,
    agent text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    last_used_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT sessions_kind_check CHECK ((kind = ANY (ARRAY['browser'::text, 'program'::text])))
);

CREATE TABLE public.sign_in_failures (
    subject bytea NOT NULL,
    failures integer NOT NULL,
    last_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.sign_ins (
    state_hash bytea NOT NULL,
    provider text NOT NULL,
    verifier text NOT NULL,
    nonce text NOT NULL,
    user_id uuid,
    expires_at timestamp with time zone NOT NULL,
    session_id uuid
);

CREATE TABLE public.snapshots (
    id uuid NOT NULL,
    team_id uuid NOT NULL,
    capsule_id uuid,
    template_id uuid,
    host_id uuid,
    name text,
    size_bytes bigint DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    status text DEFAULT 'making'::text NOT NULL,
    template text NOT NULL,
    vcpus integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib integer NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    stored boolean DEFAULT false NOT NULL,
    storage_bytes bigint DEFAULT 0 NOT NULL,
    CONSTRAINT snapshots_status_check CHECK ((status = ANY (ARRAY['making'::text, 'ready'::text, 'removing'::text])))
);

CREATE TABLE public.team_limits (
    team_id uuid NOT NULL,
    capsules integer,
    vcpus integer,
    memory_mib bigint,
    creates_per_sec integer,
    requests_per_sec integer,
    snapshots integer,
    storage_mib bigint
);

CREATE TABLE public.teams (
    id uuid NOT NULL,
    name text NOT NULL,
    slug text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_at timestamp with time zone,
    isolation text DEFAULT 'none'::text NOT NULL,
    CONSTRAINT teams_isolation_check CHECK ((isolation = ANY (ARRAY['none'::text, 'tcg'::text, 'kvm'::text, 'jailed'::text])))
);

CREATE TABLE public.templates (
    id uuid NOT NULL,
    team_id uuid NOT NULL,
    name text NOT NULL,
    vcpus integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib integer NOT NULL,
    default_user text DEFAULT 'user'::text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    isolation text DEFAULT 'none'::text NOT NULL,
    CONSTRAINT templates_isolation_check CHECK ((isolation = ANY (ARRAY['none'::text, 'tcg'::text, 'kvm'::text, 'jailed'::text])))
);

CREATE TABLE public.usage_spans (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    team_id uuid NOT NULL,
    capsule_id uuid,
    snapshot_id uuid,
    vcpus integer DEFAULT 0 NOT NULL,
    memory_mib integer DEFAULT 0 NOT NULL,
    storage_mib bigint DEFAULT 0 NOT NULL,
    began_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone
);

CREATE TABLE public.user_tokens (
    token_hash bytea NOT NULL,
    user_id uuid NOT NULL,
    kind text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    created_by uuid,
    made_by_key uuid,
    password_hash text,
    name text,
    CONSTRAINT user_tokens_kind_check CHECK ((kind = ANY (ARRAY['activate'::text, 'reset'::text])))
);

CREATE TABLE public.users (
    id uuid NOT NULL,
    email text NOT NULL,
    name text NOT NULL,
    password_hash text,
    is_admin boolean DEFAULT false NOT NULL,
    status text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_at timestamp with time zone,
    CONSTRAINT users_email_small CHECK ((email = lower(email))),
    CONSTRAINT users_status_check CHECK ((status = ANY (ARRAY['inactive'::text, 'active'::text, 'disabled'::text, 'deleted'::text])))
);

INSERT INTO public._sqlx_migrations VALUES (1, 'schema', '2026-11-01 08:00:00+00', true, '\x67ad55d9ddafa00fee380eb5589b16aa42c32d4d9f02f8d02b6664607bde8a598001db9235e9a61232fc96d453558738', 1000000);
INSERT INTO public._sqlx_migrations VALUES (2, 'proxy', '2026-11-01 08:00:00+00', true, '\xc6eb597ff77e78b33864258cb28ed4ee14410c71cf99f1fb14eee75286fa80cc3fe5dab230294b991eec5949e89b7157', 1000000);
INSERT INTO public._sqlx_migrations VALUES (3, 'keeping', '2026-11-01 08:00:00+00', true, '\x09616ab64dfc0f23446a439c044cca2850755d969fb2ed86c19f0484bc8d6b2bf66cae45bf5dd8c07ff84549ad47a1ae', 1000000);
INSERT INTO public._sqlx_migrations VALUES (4, 'hosts', '2026-11-01 08:00:00+00', true, '\x2e29c694c1a7b5957a2b309d7b611bd9a03711e9cd33a9d6e95f50aa9dbf2e642a85e5cdb83600db54ac703247bb953d', 1000000);
INSERT INTO public._sqlx_migrations VALUES (5, 'store', '2026-11-01 08:00:00+00', true, '\x2a44c02157c686e58baff72642654a8c93be1c8a243a788f7fb91ae2807930e17a2971550d735aaf2bd5047ff8784df3', 1000000);
INSERT INTO public._sqlx_migrations VALUES (6, 'accounts', '2026-11-01 08:00:00+00', true, '\xea0608336ad3c4704a5ff975e9f1f6ecd127ed947846abd08135092cd3f65074d11c054670e41faa8e77d0b9795cb6ca', 1000000);
INSERT INTO public._sqlx_migrations VALUES (7, 'isolation', '2026-11-01 08:00:00+00', true, '\x97ec17f6cb5c0137288d495d59f1c40c1e8933648ae50701f2ea840277981911f1d0c61f546540d5494118f4d8113fdb', 1000000);
INSERT INTO public._sqlx_migrations VALUES (8, 'network', '2026-11-01 08:00:00+00', true, '\x1116c3f4336bf5304cee7fde33494d749a43290bf5220451d95d1f3d3aa7a699615ff9657376384b51a481e1aea69807', 1000000);
INSERT INTO public._sqlx_migrations VALUES (9, 'storage', '2026-11-01 08:00:00+00', true, '\x3eeaa89203ad6757696ebb8fda8e3a596a57db31b9c8f687f5456b9122c58db1456c121bb47e8e92840e7ec788fe544d', 1000000);
INSERT INTO public._sqlx_migrations VALUES (10, 'placement', '2026-11-01 08:00:00+00', true, '\x9f14a0fd3ec09fdc6b51c3c4ac354300066de6df1c01c6ac91a24aa1cb27de5a6e12f826731a710bf5ba55019302dc60', 1000000);
INSERT INTO public._sqlx_migrations VALUES (11, 'makers', '2026-11-01 08:00:00+00', true, '\xa8017e5029adf2b6a5ab6cfe89a443dc8da460fd095de2baa0cdd921bd2db4a2473b142711a535c4e19a123cf7fb2279', 1000000);
INSERT INTO public._sqlx_migrations VALUES (13, 'links', '2026-11-01 08:00:00+00', true, '\x30fdcab9083a2937371d0b749db2b60d9569fee27c603895be04a066b1a6ba043f6da28ae94a2a2d06211ee9dce98729', 1000000);
INSERT INTO public._sqlx_migrations VALUES (14, 'expired channels', '2026-11-01 08:00:00+00', true, '\xafb4535666a5dd0d5fb16907d41f75511f93b907c08173f0db72049329a6cd6139b2cc59165a1148681be44982599cba', 1000000);
INSERT INTO public._sqlx_migrations VALUES (15, 'operations', '2026-11-01 08:00:00+00', true, '\x5eddd6eef666731737855f8bfc28fd5b93d2a9c2aa80853fc51dd5aa9e7a0c969a398f194bbef6e7056b4475f021b483', 1000000);

INSERT INTO public.api_keys VALUES ('bbbbbbbb-0000-4000-8000-000000000001', '11111111-1111-4111-8111-111111111111', 'first', '\xa7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e', 'e2b_0000', NULL, '2026-11-02 09:30:00+00', NULL, NULL, NULL, true, '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO public.api_keys VALUES ('bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb', '22222222-2222-4222-8222-222222222222', 'deploy', '\x285c79b208f1b809feed44bd1339b85da6a5f0a9c2e0fb5a95792d7989af7232', 'e2b_01234567', '44444444-4444-4444-8444-444444444444', '2026-11-02 09:30:00+00', NULL, NULL, NULL, false, '{}', NULL, NULL, 10, 20, 32768, 3, 50, NULL, NULL);
INSERT INTO public.api_keys VALUES ('bbbbbbbb-0000-4000-8000-000000000002', '22222222-2222-4222-8222-222222222222', 'one capsule', '\x16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4', 'e2b_89abcdef', '44444444-4444-4444-8444-444444444444', '2026-11-02 09:30:00+00', NULL, NULL, NULL, false, '{capsules:read}', '77777777-7777-4777-8777-777777777777', '88888888-8888-4888-8888-888888888888', NULL, NULL, NULL, NULL, NULL, 'bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb', 'bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb');

INSERT INTO public.audit_logs VALUES ('aaaaaaaa-0000-4000-8000-000000000008', '22222222-2222-4222-8222-222222222222', 'user', 'user-44444444', 'api_key', 'key-bbbbbbbb', 'api_key.create', 'ok', '{"name": "deploy"}', '2026-11-02 09:30:00+00', '192.0.2.7');

INSERT INTO public.builds VALUES ('aaaaaaaa-0000-4000-8000-000000000002', '22222222-2222-4222-8222-222222222222', '77777777-7777-4777-8777-000000000002', 'ready', '[{"run": "true"}]', NULL, '2026-11-02 09:30:00+00', '2026-11-02 09:30:00+00');

INSERT INTO public.capsule_metrics VALUES ('88888888-8888-4888-8888-888888888888', '2026-11-02 09:30:00+00', 12.5, 104857600, 73400320);

INSERT INTO public.capsules VALUES ('88888888-8888-4888-8888-888888888888', '22222222-2222-4222-8222-222222222222', '66666666-6666-4666-8666-666666666666', '77777777-7777-4777-8777-777777777777', 'base', 'paused', 5, 2, 512, 5120, 300, '1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a', NULL, '{"purpose": "ci"}', '2026-11-02 09:30:00+00', '2026-11-02 09:30:00+00', '2026-11-02 09:30:00+00', '2026-11-02 09:30:00+00', '2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b', '{8080,9090}', NULL, 'pause_disk', true, '99999999-9999-4999-8999-999999999999', 1, true, 'bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb', true, 'app.example.com', '{}', true, 73400320, false, 'u1', 1, 3, '');
INSERT INTO public.capsules VALUES ('88888888-8888-4888-8888-000000000002', '22222222-2222-4222-8222-222222222222', NULL, NULL, 'gone', 'stopped', 9, 1, 256, 1024, 0, '3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c', 'the machine was lost', '{}', '2100-01-01 00:00:00+00', NULL, '2100-01-01 00:00:00+00', '2100-01-01 00:00:00+00', '4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d', '{}', '2100-01-01 00:00:00+00', 'kill', false, NULL, 0, false, NULL, false, NULL, '{}', false, 0, false, '', 0, 1, '');

INSERT INTO public.channels VALUES ('cccccccc-cccc-4ccc-8ccc-cccccccccccc', '22222222-2222-4222-8222-222222222222', 'chat', 'https://hooks.example.com/wrenn', '{capsule.created,capsule.error}', true, 2, '2026-11-02 09:30:00+00', '2026-11-02 09:30:00+00', '44444444-4444-4444-8444-444444444444', 'bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb');

INSERT INTO public.daily_usage VALUES ('22222222-2222-4222-8222-222222222222', '2026-11-02', 7200, 1843200, 18432000);

INSERT INTO public.deliveries VALUES ('aaaaaaaa-0000-4000-8000-000000000006', 'cccccccc-cccc-4ccc-8ccc-cccccccccccc', '{"seq": 1}', 'capsule.created', 'done', 1, '2026-11-02 09:30:00+00', 200, NULL, '2100-01-01 00:00:00+00', '2100-01-01 00:00:00+00');
INSERT INTO public.deliveries VALUES ('aaaaaaaa-0000-4000-8000-000000000007', 'cccccccc-cccc-4ccc-8ccc-cccccccccccc', '{"seq": 2}', 'capsule.error', 'waiting', 3, '2100-01-01 00:00:00+00', 503, NULL, '2100-01-01 00:00:00+00', NULL);

INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (1, '700', '22222222-2222-4222-8222-222222222222', 'capsule.created', 'capsule', '88888888-8888-4888-8888-888888888888', '{"template": "base"}', '2100-01-01 00:00:00+00');
INSERT INTO public.events OVERRIDING SYSTEM VALUE VALUES (2, '701', '22222222-2222-4222-8222-222222222222', 'capsule.paused', 'capsule', '88888888-8888-4888-8888-888888888888', '{"previous": "pausing", "template": "base"}', '2100-01-01 00:00:00+00');

INSERT INTO public.host_tokens VALUES ('aaaaaaaa-0000-4000-8000-000000000004', '66666666-6666-4666-8666-666666666666', 'registration', '\x29c9c30e0604515ced98b3d14fd88751a8f8e4b9bc69d483a67a257c14ab79fb', '2026-11-02 09:30:00+00', '2100-01-01 00:00:00+00', '2026-11-02 09:30:00+00', NULL, NULL, '\x97178ee8c2242a4d929fe554c0a14d037372702ef1f3166eecd5c161930e15f8', NULL, NULL);
INSERT INTO public.host_tokens VALUES ('aaaaaaaa-0000-4000-8000-000000000005', '66666666-6666-4666-8666-666666666666', 'refresh', '\xd6cc0a088c07683c65cd266860cab8d94b3a1937b17420d9da30ca299c09fb77', '2026-11-02 09:30:00+00', '2100-01-01 00:00:00+00', NULL, NULL, 'aaaaaaaa-0000-4000-8000-000000000004', NULL, NULL, NULL);

INSERT INTO public.hosts VALUES ('66666666-6666-4666-8666-666666666666', NULL, 'rack-1', '127.0.0.1:9', 'unreachable', 'x86_64', 'qemu', 'tcg', '0.1.0', '{base}', 8, 32768, 512000, '{ssd}', 'abababababababababababababababababababababababababababababababab', '2100-01-01 00:00:00+00', '2026-11-02 09:30:00+00', '2026-11-02 09:30:00+00', false, 64, true, '{}', 'cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd', 2, 'tcg');

INSERT INTO public.idempotency_keys VALUES ('22222222-2222-4222-8222-222222222222', 'once', '\x1f58b9145b24d108d7ac38887338b3ea3229833b9c1e418250343f907bfd1047', '88888888-8888-4888-8888-888888888888', '2100-01-01 00:00:00+00');

INSERT INTO public.identities VALUES ('github', '1001', '44444444-4444-4444-8444-444444444444', '2026-11-02 09:30:00+00');

INSERT INTO public.invitations VALUES ('aaaaaaaa-0000-4000-8000-000000000003', '22222222-2222-4222-8222-222222222222', 'guest@example.com', 'viewer', '44444444-4444-4444-8444-444444444444', '\xa3013c082c75edc913598c3baac1afa18f7633fe8f014896ab2f1a72ff83d8ba', '2026-11-02 09:30:00+00', '2100-01-01 00:00:00+00', 'bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb');

INSERT INTO public.memberships VALUES ('22222222-2222-4222-8222-222222222222', '44444444-4444-4444-8444-444444444444', 'owner', true, '2026-11-02 09:30:00+00');

INSERT INTO public.schema_floor VALUES (true, 10);

INSERT INTO public.secrets VALUES ('host-jwt', '\x99f9bd4bf6fa6ea545d30dc09ff168d9672358921c0c03442cf49fd9713ceeec');
INSERT INTO public.secrets VALUES ('user-jwt', '\x590fbcc097feef8a101534ee172fefb6d9101c087a0f0dae84d6196226d1e8c2');

INSERT INTO public.sessions VALUES ('aaaaaaaa-0000-4000-8000-000000000001', '44444444-4444-4444-8444-444444444444', '\x3f3af1ecebbd1410ab417ec0d27bbfcb5d340e177ae159b59fc8626c2dfd9175', 'browser', '192.0.2.7', 'Firefox', '2026-11-02 09:30:00+00', '2100-01-01 00:00:00+00', '2026-11-02 09:30:00+00');

INSERT INTO public.sign_in_failures VALUES ('\xb5fc85e55755f9e0d030a10ab4429b6b2944855f9a0d60077fe832becbc41d72', 2, '2100-01-01 00:00:00+00');

INSERT INTO public.sign_ins VALUES ('\x4ba69735ca53765ed6a709edb56c6ea236b7193a3b29a6b390c346f0f4340e4e', 'google', 'verifier', 'nonce', '44444444-4444-4444-8444-444444444444', '2100-01-01 00:00:00+00', 'aaaaaaaa-0000-4000-8000-000000000001');

INSERT INTO public.snapshots VALUES ('99999999-9999-4999-8999-999999999999', '22222222-2222-4222-8222-222222222222', '88888888-8888-4888-8888-888888888888', '77777777-7777-4777-8777-777777777777', '66666666-6666-4666-8666-666666666666', 'nightly', 52428800, '2026-11-02 09:30:00+00', 'ready', 'base', 2, 512, 5120, '2026-11-02 09:30:00+00', true, 41943040);

INSERT INTO public.team_limits VALUES ('22222222-2222-4222-8222-222222222222', 20, 40, 65536, 5, 100, 50, 204800);

INSERT INTO public.teams VALUES ('00000000-0000-0000-0000-000000000000', 'Platform', 'platform', '2026-11-01 08:00:00+00', NULL, 'none');
INSERT INTO public.teams VALUES ('11111111-1111-4111-8111-111111111111', 'Default', 'default-1', '2026-11-01 08:00:01+00', NULL, 'none');
INSERT INTO public.teams VALUES ('22222222-2222-4222-8222-222222222222', 'Acme', 'acme-2', '2026-11-02 09:30:00+00', NULL, 'tcg');
INSERT INTO public.teams VALUES ('33333333-3333-4333-8333-333333333333', 'Gone', 'gone-3', '2026-11-02 09:30:00+00', '2026-11-02 09:30:00+00', 'none');

INSERT INTO public.templates VALUES ('77777777-7777-4777-8777-777777777777', '00000000-0000-0000-0000-000000000000', 'base', 1, 512, 5120, 'user', '{}', '2026-11-02 09:30:00+00', 'none');
INSERT INTO public.templates VALUES ('77777777-7777-4777-8777-000000000002', '22222222-2222-4222-8222-222222222222', 'tools', 2, 1024, 10240, 'root', '{"team": "data"}', '2026-11-02 09:30:00+00', 'tcg');

INSERT INTO public.usage_spans VALUES ('aaaaaaaa-0000-4000-8000-000000000009', '22222222-2222-4222-8222-222222222222', '88888888-8888-4888-8888-888888888888', NULL, 0, 0, 5120, '2026-11-02 09:30:00+00', NULL);
INSERT INTO public.usage_spans VALUES ('aaaaaaaa-0000-4000-8000-00000000000a', '22222222-2222-4222-8222-222222222222', NULL, '99999999-9999-4999-8999-999999999999', 0, 0, 50, '2026-11-02 09:30:00+00', NULL);
INSERT INTO public.usage_spans VALUES ('aaaaaaaa-0000-4000-8000-00000000000b', '22222222-2222-4222-8222-222222222222', '88888888-8888-4888-8888-888888888888', NULL, 2, 512, 0, '2100-01-01 00:00:00+00', '2100-01-01 00:00:00+00');

INSERT INTO public.user_tokens VALUES ('\x200c7e6220036fd90a72b70cf30651c9a4733f1b9afbd878c7f2f692a3ceded1', '55555555-5555-4555-8555-555555555555', 'activate', '2026-11-02 09:30:00+00', '2100-01-01 00:00:00+00', '44444444-4444-4444-8444-444444444444', NULL, NULL, 'New');

INSERT INTO public.users VALUES ('44444444-4444-4444-8444-444444444444', 'ada@example.com', 'Ada', '$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaGhhc2g', true, 'active', '2026-11-02 09:30:00+00', '2026-11-02 09:30:00+00', NULL);
INSERT INTO public.users VALUES ('55555555-5555-4555-8555-555555555555', 'new@example.com', 'New', NULL, false, 'inactive', '2026-11-02 09:30:00+00', '2026-11-02 09:30:00+00', NULL);

SELECT pg_catalog.setval('public.events_seq_seq', 2, true);

ALTER TABLE ONLY public._sqlx_migrations
    ADD CONSTRAINT _sqlx_migrations_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.audit_logs
    ADD CONSTRAINT audit_logs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.builds
    ADD CONSTRAINT builds_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.capsule_metrics
    ADD CONSTRAINT capsule_metrics_pkey PRIMARY KEY (capsule_id, at);

ALTER TABLE ONLY public.capsules
    ADD CONSTRAINT capsules_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.channels
    ADD CONSTRAINT channels_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.channels
    ADD CONSTRAINT channels_team_id_name_key UNIQUE (team_id, name);

ALTER TABLE ONLY public.daily_usage
    ADD CONSTRAINT daily_usage_pkey PRIMARY KEY (team_id, day);

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (seq);

ALTER TABLE ONLY public.host_tokens
    ADD CONSTRAINT host_tokens_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.host_tokens
    ADD CONSTRAINT host_tokens_token_hash_key UNIQUE (token_hash);

ALTER TABLE ONLY public.hosts
    ADD CONSTRAINT hosts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (team_id, key);

ALTER TABLE ONLY public.identities
    ADD CONSTRAINT identities_pkey PRIMARY KEY (provider, subject);

ALTER TABLE ONLY public.identities
    ADD CONSTRAINT identities_user_id_provider_key UNIQUE (user_id, provider);

ALTER TABLE ONLY public.invitations
    ADD CONSTRAINT invitations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.invitations
    ADD CONSTRAINT invitations_team_id_email_key UNIQUE (team_id, email);

ALTER TABLE ONLY public.invitations
    ADD CONSTRAINT invitations_token_hash_key UNIQUE (token_hash);

ALTER TABLE ONLY public.memberships
    ADD CONSTRAINT memberships_pkey PRIMARY KEY (team_id, user_id);

ALTER TABLE ONLY public.schema_floor
    ADD CONSTRAINT schema_floor_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY public.secrets
    ADD CONSTRAINT secrets_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_token_hash_key UNIQUE (token_hash);

ALTER TABLE ONLY public.sign_in_failures
    ADD CONSTRAINT sign_in_failures_pkey PRIMARY KEY (subject);

ALTER TABLE ONLY public.sign_ins
    ADD CONSTRAINT sign_ins_pkey PRIMARY KEY (state_hash);

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT snapshots_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT snapshots_team_id_name_key UNIQUE (team_id, name);

ALTER TABLE ONLY public.team_limits
    ADD CONSTRAINT team_limits_pkey PRIMARY KEY (team_id);

ALTER TABLE ONLY public.teams
    ADD CONSTRAINT teams_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.teams
    ADD CONSTRAINT teams_slug_key UNIQUE (slug);

ALTER TABLE ONLY public.templates
    ADD CONSTRAINT templates_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.templates
    ADD CONSTRAINT templates_team_id_name_key UNIQUE (team_id, name);

ALTER TABLE ONLY public.usage_spans
    ADD CONSTRAINT usage_spans_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.user_tokens
    ADD CONSTRAINT user_tokens_pkey PRIMARY KEY (token_hash);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_email_key UNIQUE (email);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

CREATE INDEX api_keys_by_maker ON public.api_keys USING btree (made_by_key) WHERE (made_by_key IS NOT NULL);

CREATE INDEX api_keys_by_team ON public.api_keys USING btree (team_id, created_at DESC, id DESC);

CREATE INDEX api_keys_by_user ON public.api_keys USING btree (created_by);

CREATE INDEX audit_logs_by_action ON public.audit_logs USING btree (team_id, action, created_at DESC, id DESC);

CREATE INDEX audit_logs_by_actor ON public.audit_logs USING btree (team_id, actor_id, created_at DESC, id DESC);

CREATE INDEX audit_logs_by_resource ON public.audit_logs USING btree (team_id, resource_id, created_at DESC, id DESC);

CREATE INDEX audit_logs_by_team ON public.audit_logs USING btree (team_id, created_at DESC, id DESC);

CREATE INDEX audit_logs_by_time ON public.audit_logs USING btree (created_at DESC, id DESC);

CREATE INDEX audit_logs_by_user ON public.audit_logs USING btree (((metadata ->> 'user'::text))) WHERE (metadata ? 'user'::text);

CREATE INDEX capsules_live_by_host ON public.capsules USING btree (host_id) WHERE (status <> 'stopped'::text);

CREATE INDEX capsules_live_by_key ON public.capsules USING btree (created_by_key) WHERE ((status <> 'stopped'::text) AND (created_by_key IS NOT NULL));

CREATE INDEX capsules_live_by_team ON public.capsules USING btree (team_id, created_at DESC, id DESC) WHERE (status <> 'stopped'::text);

CREATE INDEX capsules_stopped ON public.capsules USING btree (updated_at) WHERE (status = 'stopped'::text);

CREATE INDEX channels_by_key ON public.channels USING btree (made_by_key) WHERE (enabled AND (made_by_key IS NOT NULL));

CREATE INDEX channels_by_maker ON public.channels USING btree (created_by) WHERE (created_by IS NOT NULL);

CREATE INDEX deliveries_by_channel ON public.deliveries USING btree (channel_id, created_at DESC, id DESC);

CREATE INDEX deliveries_done ON public.deliveries USING btree (created_at) WHERE (status <> 'waiting'::text);

CREATE INDEX deliveries_due ON public.deliveries USING btree (next_at) WHERE (status = 'waiting'::text);

CREATE INDEX events_by_team ON public.events USING btree (team_id, transaction, seq);

CREATE INDEX events_by_time ON public.events USING btree (created_at);

CREATE INDEX host_tokens_by_host ON public.host_tokens USING btree (host_id);

CREATE UNIQUE INDEX hosts_by_name ON public.hosts USING btree (name);

CREATE INDEX idempotency_keys_by_capsule ON public.idempotency_keys USING btree (capsule_id);

CREATE INDEX idempotency_keys_by_time ON public.idempotency_keys USING btree (created_at);

CREATE INDEX invitations_by_maker ON public.invitations USING btree (invited_by);

CREATE INDEX memberships_by_user ON public.memberships USING btree (user_id);

CREATE UNIQUE INDEX memberships_default ON public.memberships USING btree (user_id) WHERE is_default;

CREATE UNIQUE INDEX memberships_owner ON public.memberships USING btree (team_id) WHERE (role = 'owner'::text);

CREATE INDEX sessions_by_user ON public.sessions USING btree (user_id);

CREATE INDEX sign_ins_by_session ON public.sign_ins USING btree (session_id) WHERE (session_id IS NOT NULL);

CREATE INDEX snapshots_by_host ON public.snapshots USING btree (host_id);

CREATE INDEX snapshots_by_team ON public.snapshots USING btree (team_id, created_at DESC, id DESC);

CREATE INDEX usage_spans_by_team ON public.usage_spans USING btree (team_id, began_at);

CREATE INDEX usage_spans_closed ON public.usage_spans USING btree (ended_at) WHERE (ended_at IS NOT NULL);

CREATE INDEX usage_spans_open ON public.usage_spans USING btree (COALESCE(capsule_id, snapshot_id)) WHERE (ended_at IS NULL);

CREATE INDEX user_tokens_by_user ON public.user_tokens USING btree (user_id);

CREATE TRIGGER capsule_changed AFTER DELETE OR UPDATE OF status, team_id, host_id, envd_token, traffic_token, link_generation, public_ports, public_traffic, host_header, auto_resume ON public.capsules FOR EACH ROW EXECUTE FUNCTION public.tell_of_capsule();

CREATE TRIGGER capsule_moved AFTER INSERT OR UPDATE OF status ON public.capsules FOR EACH ROW EXECUTE FUNCTION public.capsule_moved();

CREATE TRIGGER host_came_or_went AFTER INSERT OR DELETE ON public.hosts FOR EACH ROW EXECUTE FUNCTION public.tell_of_host();

CREATE TRIGGER host_changed AFTER UPDATE ON public.hosts FOR EACH ROW WHEN (((((((((((((old.address IS DISTINCT FROM new.address) OR (old.status IS DISTINCT FROM new.status)) OR (old.draining IS DISTINCT FROM new.draining)) OR (old.tags IS DISTINCT FROM new.tags)) OR (old.templates IS DISTINCT FROM new.templates)) OR (old.team_id IS DISTINCT FROM new.team_id)) OR (old.store IS DISTINCT FROM new.store)) OR (old.cert_fingerprint IS DISTINCT FROM new.cert_fingerprint)) OR (old.cert_previous IS DISTINCT FROM new.cert_previous)) OR (old.max_vcpus IS DISTINCT FROM new.max_vcpus)) OR (old.memory_mib IS DISTINCT FROM new.memory_mib)) OR (old.disk_mib IS DISTINCT FROM new.disk_mib))) EXECUTE FUNCTION public.tell_of_host();

CREATE TRIGGER host_moved AFTER UPDATE OF status ON public.hosts FOR EACH ROW WHEN (((old.status IS DISTINCT FROM new.status) AND (new.status = ANY (ARRAY['online'::text, 'unreachable'::text])))) EXECUTE FUNCTION public.host_moved();

CREATE TRIGGER key_changed AFTER DELETE OR UPDATE OF team_id, key_hash, created_by, expires_at, revoked_at, scopes, template_id, capsule_id, max_capsules, max_vcpus, max_memory_mib, creates_per_sec, requests_per_sec, operator ON public.api_keys FOR EACH ROW EXECUTE FUNCTION public.tell_of_key();

CREATE TRIGGER limits_changed AFTER INSERT OR DELETE OR UPDATE ON public.team_limits FOR EACH ROW EXECUTE FUNCTION public.tell_of_team();

CREATE TRIGGER member_changed AFTER INSERT OR DELETE OR UPDATE ON public.memberships FOR EACH ROW EXECUTE FUNCTION public.tell_of_user();

CREATE TRIGGER session_changed AFTER DELETE OR UPDATE OF expires_at ON public.sessions FOR EACH ROW EXECUTE FUNCTION public.tell_of_session();

CREATE TRIGGER snapshot_moved AFTER DELETE OR UPDATE OF status ON public.snapshots FOR EACH ROW EXECUTE FUNCTION public.snapshot_moved();

CREATE TRIGGER snapshot_name BEFORE INSERT OR UPDATE OF name, team_id ON public.snapshots FOR EACH ROW EXECUTE FUNCTION public.keep_reserved();

CREATE TRIGGER template_name BEFORE INSERT OR UPDATE OF name, team_id ON public.templates FOR EACH ROW EXECUTE FUNCTION public.keep_reserved();

CREATE TRIGGER tier_changed AFTER UPDATE OF isolation ON public.teams FOR EACH ROW EXECUTE FUNCTION public.tell_of_tier();

CREATE TRIGGER user_changed AFTER DELETE OR UPDATE ON public.users FOR EACH ROW EXECUTE FUNCTION public.tell_of_user();

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_capsule_id_fkey FOREIGN KEY (capsule_id) REFERENCES public.capsules(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_counted_as_fkey FOREIGN KEY (counted_as) REFERENCES public.api_keys(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_created_by_fkey FOREIGN KEY (created_by) REFERENCES public.users(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_made_by_key_fkey FOREIGN KEY (made_by_key) REFERENCES public.api_keys(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_template_id_fkey FOREIGN KEY (template_id) REFERENCES public.templates(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.audit_logs
    ADD CONSTRAINT audit_logs_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.builds
    ADD CONSTRAINT builds_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.builds
    ADD CONSTRAINT builds_template_id_fkey FOREIGN KEY (template_id) REFERENCES public.templates(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.capsule_metrics
    ADD CONSTRAINT capsule_metrics_capsule_id_fkey FOREIGN KEY (capsule_id) REFERENCES public.capsules(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.capsules
    ADD CONSTRAINT capsules_host_id_fkey FOREIGN KEY (host_id) REFERENCES public.hosts(id);

ALTER TABLE ONLY public.capsules
    ADD CONSTRAINT capsules_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id);

ALTER TABLE ONLY public.capsules
    ADD CONSTRAINT capsules_template_id_fkey FOREIGN KEY (template_id) REFERENCES public.templates(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.channels
    ADD CONSTRAINT channels_created_by_fkey FOREIGN KEY (created_by) REFERENCES public.users(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.channels
    ADD CONSTRAINT channels_made_by_key_fkey FOREIGN KEY (made_by_key) REFERENCES public.api_keys(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.channels
    ADD CONSTRAINT channels_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.daily_usage
    ADD CONSTRAINT daily_usage_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.deliveries
    ADD CONSTRAINT deliveries_channel_id_fkey FOREIGN KEY (channel_id) REFERENCES public.channels(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.host_tokens
    ADD CONSTRAINT host_tokens_created_by_fkey FOREIGN KEY (created_by) REFERENCES public.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.host_tokens
    ADD CONSTRAINT host_tokens_host_id_fkey FOREIGN KEY (host_id) REFERENCES public.hosts(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.host_tokens
    ADD CONSTRAINT host_tokens_made_by_key_fkey FOREIGN KEY (made_by_key) REFERENCES public.api_keys(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.host_tokens
    ADD CONSTRAINT host_tokens_parent_id_fkey FOREIGN KEY (parent_id) REFERENCES public.host_tokens(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.hosts
    ADD CONSTRAINT hosts_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_capsule_id_fkey FOREIGN KEY (capsule_id) REFERENCES public.capsules(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.identities
    ADD CONSTRAINT identities_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.invitations
    ADD CONSTRAINT invitations_invited_by_fkey FOREIGN KEY (invited_by) REFERENCES public.users(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.invitations
    ADD CONSTRAINT invitations_made_by_key_fkey FOREIGN KEY (made_by_key) REFERENCES public.api_keys(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.invitations
    ADD CONSTRAINT invitations_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.memberships
    ADD CONSTRAINT memberships_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.memberships
    ADD CONSTRAINT memberships_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.sign_ins
    ADD CONSTRAINT sign_ins_session_id_fkey FOREIGN KEY (session_id) REFERENCES public.sessions(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.sign_ins
    ADD CONSTRAINT sign_ins_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT snapshots_capsule_id_fkey FOREIGN KEY (capsule_id) REFERENCES public.capsules(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT snapshots_host_id_fkey FOREIGN KEY (host_id) REFERENCES public.hosts(id);

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT snapshots_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.snapshots
    ADD CONSTRAINT snapshots_template_id_fkey FOREIGN KEY (template_id) REFERENCES public.templates(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.team_limits
    ADD CONSTRAINT team_limits_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.templates
    ADD CONSTRAINT templates_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.usage_spans
    ADD CONSTRAINT usage_spans_team_id_fkey FOREIGN KEY (team_id) REFERENCES public.teams(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.user_tokens
    ADD CONSTRAINT user_tokens_created_by_fkey FOREIGN KEY (created_by) REFERENCES public.users(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.user_tokens
    ADD CONSTRAINT user_tokens_made_by_key_fkey FOREIGN KEY (made_by_key) REFERENCES public.api_keys(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.user_tokens
    ADD CONSTRAINT user_tokens_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id) ON DELETE CASCADE;


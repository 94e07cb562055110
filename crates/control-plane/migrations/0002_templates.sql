-- Templates that users make: builds, which are the versions of templates, their tags, logs and
-- uploaded files, and logins to registries.

-- ── Templates ──────────────────────────────────────────────────────────────────────────────────

-- True if every team may create capsules from the template.
ALTER TABLE templates ADD public boolean NOT NULL DEFAULT false;
ALTER TABLE templates ADD updated_at timestamptz NOT NULL DEFAULT now();
-- Host that built the template last, and has its cache and uploaded files.
ALTER TABLE templates ADD build_host_id uuid REFERENCES hosts ON DELETE SET NULL;
-- Creates of capsules from the template, and the last one.
ALTER TABLE templates ADD spawn_count bigint NOT NULL DEFAULT 0;
ALTER TABLE templates ADD last_spawned_at timestamptz;

-- ── Builds ─────────────────────────────────────────────────────────────────────────────────────

-- No program used this table before.
DROP TABLE builds;
-- A build is a version of its template once it is ready. After that, it only ends: by `error`, when
-- the only host that has its files is deleted.
CREATE TABLE builds (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    template_id uuid NOT NULL REFERENCES templates ON DELETE CASCADE,
    -- `waiting` until its steps are known, as E2B's clients declare a build first.
    status text NOT NULL CHECK (status IN ('waiting', 'building', 'ready', 'error')),
    -- Number that grows with each change of status or host. Every change names the number it saw.
    generation bigint NOT NULL DEFAULT 1,
    -- Work that a building build does: `queued`, `image`, `steps`, `layer` or `start`.
    phase text,
    -- Step of the last stage that ended last, and the number of steps.
    step integer NOT NULL DEFAULT 0,
    steps integer NOT NULL DEFAULT 0,
    -- JSON of `recipe::BuildSpec`. It holds no login.
    spec jsonb,
    -- Logins that only this build uses, encrypted. Removed once the host has them.
    sealed_logins bytea,
    -- JSON of `recipe::Provenance`, once the version is built.
    provenance jsonb,
    -- Snapshot that is the version, if the version was made of a capsule with its memory.
    snapshot_id uuid REFERENCES snapshots ON DELETE SET NULL,
    -- Templates that the build begins from: name in the recipe, and version.
    bases jsonb NOT NULL DEFAULT '{}',
    vcpus integer NOT NULL,
    memory_mib integer NOT NULL,
    disk_mib integer NOT NULL,
    -- Host that builds or built.
    host_id uuid REFERENCES hosts ON DELETE SET NULL,
    -- Capsule that runs the steps or the start command.
    capsule_id uuid,
    -- Number of the host's last event that is in this database.
    events_seen bigint NOT NULL DEFAULT 0,
    -- Lines in the log.
    lines bigint NOT NULL DEFAULT 0,
    -- Bytes on the disk of one host.
    bytes bigint NOT NULL DEFAULT 0,
    -- True once the store has the version. That stays true when the hosts that have it go.
    stored boolean NOT NULL DEFAULT false,
    -- Reason of status `error`: `{"message", "step", "output"}`.
    reason jsonb,
    -- Key or user that asked for the build, as in the audit log.
    requested_by text NOT NULL DEFAULT '',
    created_by_key uuid,
    -- Build is to end. The replica that runs it sees this.
    cancelled boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    ended_at timestamptz
);
CREATE INDEX builds_by_template ON builds (template_id, created_at DESC, id DESC);
CREATE INDEX builds_by_team ON builds (team_id, created_at DESC, id DESC);
CREATE INDEX builds_under_way ON builds (status) WHERE status IN ('waiting', 'building');

-- Idempotency keys of builds, written together with the build.
CREATE TABLE build_keys (
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    key text NOT NULL,
    -- Hash of the request.
    request_hash bytea NOT NULL,
    build_id uuid NOT NULL REFERENCES builds ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, key)
);
CREATE INDEX build_keys_by_build ON build_keys (build_id);
CREATE INDEX build_keys_by_time ON build_keys (created_at);

-- Announces builds that change, for whoever runs or watches them.
CREATE FUNCTION tell_of_build() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'build:' || NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER build_changed AFTER INSERT OR UPDATE OF status, cancelled, lines ON builds
    FOR EACH ROW EXECUTE FUNCTION tell_of_build();

-- Writes the event of a build that ends.
CREATE FUNCTION build_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit(NEW.team_id, CASE NEW.status WHEN 'ready' THEN 'template.build.ready'
        ELSE 'template.build.failed' END, 'template', NEW.template_id, jsonb_build_object(
        'build', NEW.id, 'name', (SELECT name FROM templates WHERE id = NEW.template_id)));
    RETURN NULL;
END $$;
CREATE TRIGGER build_ended AFTER UPDATE OF status ON builds FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('ready', 'error'))
    EXECUTE FUNCTION build_ended();

-- A tag is a list of assignments. It stands for the newest one whose build is ready.
CREATE TABLE template_tags (
    -- Order of the assignments.
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    template_id uuid NOT NULL REFERENCES templates ON DELETE CASCADE,
    tag text NOT NULL,
    build_id uuid NOT NULL REFERENCES builds ON DELETE CASCADE,
    assigned_at timestamptz NOT NULL DEFAULT now(),
    -- Set once the tag is deleted. Such an assignment never comes back.
    deleted_at timestamptz
);
CREATE INDEX template_tags_live ON template_tags (template_id, tag, seq DESC) WHERE deleted_at IS NULL;
CREATE INDEX template_tags_by_build ON template_tags (build_id);

CREATE TABLE build_logs (
    build_id uuid NOT NULL REFERENCES builds ON DELETE CASCADE,
    -- Place in the log, from 1, without gaps.
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    level text NOT NULL CHECK (level IN ('debug', 'info', 'warn', 'error')),
    -- Step of the last stage; NULL for lines of no step.
    step integer,
    text text NOT NULL,
    PRIMARY KEY (build_id, seq)
);
CREATE INDEX build_logs_by_time ON build_logs USING brin (at);

-- Files that clients uploaded for COPY steps. The client chooses the hash, so it counts only within
-- its team.
CREATE TABLE build_files (
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    hash text NOT NULL,
    host_id uuid NOT NULL REFERENCES hosts ON DELETE CASCADE,
    bytes bigint NOT NULL,
    used_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, hash, host_id)
);

-- Hosts that have a version.
CREATE TABLE host_versions (
    host_id uuid NOT NULL REFERENCES hosts ON DELETE CASCADE,
    build_id uuid NOT NULL REFERENCES builds ON DELETE CASCADE,
    bytes bigint NOT NULL DEFAULT 0,
    stored boolean NOT NULL DEFAULT false,
    PRIMARY KEY (host_id, build_id)
);
CREATE INDEX host_versions_by_build ON host_versions (build_id);

CREATE TABLE registry_logins (
    team_id uuid NOT NULL REFERENCES teams ON DELETE CASCADE,
    -- Host of the registry, with its port if that is not the default.
    registry text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('basic', 'aws', 'gcp')),
    -- Login, encrypted.
    sealed bytea NOT NULL,
    -- User name or access key, for people.
    username text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, registry)
);

-- ── Capsules and snapshots ─────────────────────────────────────────────────────────────────────

-- Version that the capsule began from; NULL for a template that the operator put on the hosts.
ALTER TABLE capsules ADD version_id uuid REFERENCES builds ON DELETE SET NULL;
-- Build that the capsule works for. Nobody but the build sees such a capsule. The column outlives
-- the build, so that no such capsule ever becomes visible.
ALTER TABLE capsules ADD build_id uuid;
CREATE INDEX capsules_by_build ON capsules (build_id)
    WHERE build_id IS NOT NULL AND status <> 'stopped';
CREATE INDEX capsules_by_version ON capsules (version_id) WHERE version_id IS NOT NULL;
ALTER TABLE snapshots ADD version_id uuid REFERENCES builds ON DELETE SET NULL;
CREATE INDEX snapshots_by_version ON snapshots (version_id) WHERE version_id IS NOT NULL;

-- Opens and closes usage intervals when a capsule changes its state, and writes the event.
-- A capsule that works for a build has usage, and no events.
CREATE OR REPLACE FUNCTION capsule_moved() RETURNS trigger LANGUAGE plpgsql AS $$
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
    IF told IS NOT NULL AND NEW.build_id IS NULL THEN
        PERFORM emit(NEW.team_id, told, 'capsule', NEW.id, jsonb_strip_nulls(jsonb_build_object(
            'previous', nullif(was, 'none'), 'template', NEW.template, 'error', NEW.error)));
    END IF;
    RETURN NULL;
END $$;

-- ── Limits ─────────────────────────────────────────────────────────────────────────────────────

-- Templates of the team, builds under way at once, and MiB of its versions on the hosts' disks. NULL
-- is the platform's default, and 0 is no limit.
ALTER TABLE team_limits ADD templates integer;
ALTER TABLE team_limits ADD builds integer;
ALTER TABLE team_limits ADD template_mib bigint;

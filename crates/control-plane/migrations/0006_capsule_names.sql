-- Names, creators and parents of capsules, the times of their states, and counts by state. An index
-- for each filter and order of the list of capsules.

-- The locks come first. A transaction that holds one of the tables would otherwise wait for another
-- while the migration works, and the migration could not go on.
LOCK TABLE snapshots IN SHARE MODE;
LOCK TABLE capsules IN ACCESS EXCLUSIVE MODE;

-- ── Columns ────────────────────────────────────────────────────────────────────────────────────

-- Name that the team chose. The collation makes ranges of names those of their bytes.
ALTER TABLE capsules ADD name text COLLATE "C";
-- Creator, in the words of the audit log: kind, id on the wire, and name at the create. NULL for
-- capsules of an earlier control plane. An erased user leaves only the kind.
ALTER TABLE capsules ADD created_by_type text;
ALTER TABLE capsules ADD created_by_id text;
ALTER TABLE capsules ADD created_by_label text;
-- Origin of the capsule, which may be gone.
ALTER TABLE capsules ADD parent_type text
    CHECK (parent_type IN ('capsule', 'snapshot', 'template'));
ALTER TABLE capsules ADD parent_id uuid;
-- Begin of the present state, of the present pause, and the end of the capsule. A trigger sets them.
ALTER TABLE capsules ADD state_since timestamptz NOT NULL DEFAULT now();
ALTER TABLE capsules ADD paused_at timestamptz;
ALTER TABLE capsules ADD ended_at timestamptz;

UPDATE capsules SET state_since = updated_at, last_active_at = updated_at,
    paused_at = CASE WHEN status = 'paused' THEN updated_at END,
    ended_at = CASE WHEN status = 'stopped' THEN updated_at END,
    parent_type = CASE WHEN template_id IS NOT NULL THEN 'template'
        WHEN snapshot_id IS NOT NULL THEN 'snapshot' END,
    parent_id = coalesce(template_id, snapshot_id);

-- ── Times of states ────────────────────────────────────────────────────────────────────────────

-- A resume that fails leads back to `paused`, and the pause goes on. A capsule that begins to run
-- is active.
CREATE FUNCTION set_state_times() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.state_since := now();
    IF NEW.status = 'running' THEN
        NEW.paused_at := NULL;
        NEW.last_active_at := now();
    ELSIF NEW.status = 'paused' THEN
        NEW.paused_at := coalesce(OLD.paused_at, now());
    ELSIF NEW.status = 'stopped' THEN
        NEW.ended_at := now();
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER capsule_state_times BEFORE UPDATE OF status ON capsules FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION set_state_times();

-- ── Names ──────────────────────────────────────────────────────────────────────────────────────

-- A name stands for one living capsule of its team.
CREATE UNIQUE INDEX capsules_name ON capsules (team_id, name)
    WHERE name IS NOT NULL AND status <> 'stopped';

-- Returns the name of a copy of the capsule with the name `origin`. The name is the stem with the
-- smallest free number from 2 in the team. The stem is `origin` without such a number. NULL for a
-- capsule without a name. Another transaction may take the name first. The unique index then
-- refuses the insert, and the caller tries again.
CREATE FUNCTION free_capsule_name(team uuid, origin text) RETURNS text
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    stem text := left(regexp_replace(origin, '-[1-9][0-9]{0,5}$', ''), 56);
    free integer;
BEGIN
    WITH used AS MATERIALIZED (
        SELECT substr(c.name, length(stem) + 2)::integer AS number FROM capsules c
        WHERE c.team_id = team AND c.name IS NOT NULL AND c.status <> 'stopped'
        -- The byte after `-` is `.`, so the range has the names that begin with the stem and `-`.
        AND c.name >= stem || '-' AND c.name < stem || '.'
        AND substr(c.name, length(stem) + 2) ~ '^[1-9][0-9]{0,5}$')
    SELECT min(candidate.number) INTO free
        FROM (SELECT 2 AS number UNION ALL SELECT used.number + 1 FROM used) candidate
        WHERE candidate.number >= 2
        AND NOT EXISTS (SELECT 1 FROM used WHERE used.number = candidate.number);
    RETURN stem || '-' || free;
END $$;

-- ── Lists ──────────────────────────────────────────────────────────────────────────────────────

-- An index for each filter begins with the filter's value and goes on in the order of the list. A
-- page is then a scan of as many entries as it has items.
CREATE INDEX capsules_by_status ON capsules (team_id, status, created_at DESC, id DESC)
    WHERE status <> 'stopped';
CREATE INDEX capsules_by_template ON capsules (team_id, template, created_at DESC, id DESC)
    WHERE status <> 'stopped';
CREATE INDEX capsules_by_creator ON capsules (team_id, created_by_id, created_at DESC, id DESC)
    WHERE status <> 'stopped' AND created_by_id IS NOT NULL;
CREATE INDEX capsules_by_snapshot ON capsules (team_id, snapshot_id, created_at DESC, id DESC)
    WHERE snapshot_id IS NOT NULL;
CREATE INDEX capsules_on_host ON capsules (host_id, created_at DESC, id DESC)
    WHERE status <> 'stopped';
DROP INDEX capsules_live_by_host;
-- Orders by time of the state, and by name. Capsules without a name follow all names, since no name
-- has the character `~`.
CREATE INDEX capsules_by_state_since ON capsules (team_id, state_since DESC, id DESC)
    WHERE status <> 'stopped';
CREATE INDEX capsules_by_name ON capsules (team_id, coalesce(name, '~'), id)
    WHERE status <> 'stopped';
-- Pairs of metadata. Inserts keep no list of pending entries, so none has to sort in the entries of
-- others. More statistics tell frequent pairs, which another index finds sooner, from rare ones.
CREATE INDEX capsules_by_metadata ON capsules USING gin (metadata jsonb_path_ops)
    WITH (fastupdate = off) WHERE metadata <> '{}';
ALTER TABLE capsules ALTER metadata SET STATISTICS 1000;
-- Ended capsules.
CREATE INDEX capsules_ended ON capsules (team_id, created_at DESC, id DESC)
    WHERE status = 'stopped';
CREATE INDEX capsules_ended_since ON capsules (team_id, state_since DESC, id DESC)
    WHERE status = 'stopped';
CREATE INDEX capsules_ended_by_template ON capsules (team_id, template, created_at DESC, id DESC)
    WHERE status = 'stopped';
CREATE INDEX capsules_ended_by_creator ON capsules (team_id, created_by_id, created_at DESC, id DESC)
    WHERE status = 'stopped' AND created_by_id IS NOT NULL;
CREATE INDEX capsules_ended_by_name ON capsules (team_id, name, created_at DESC, id DESC)
    WHERE status = 'stopped' AND name IS NOT NULL;
-- Lineage: copies of a capsule, capsules of a snapshot, and snapshots of a capsule.
CREATE INDEX capsules_by_parent ON capsules (parent_id, created_at DESC, id DESC)
    WHERE parent_type <> 'template';
CREATE INDEX snapshots_by_capsule ON snapshots (capsule_id, created_at DESC, id DESC)
    WHERE capsule_id IS NOT NULL;

-- ── Counts ─────────────────────────────────────────────────────────────────────────────────────

-- Changes of the number of a team's capsules in a state. Their sum is the number. A move appends
-- rows, so moves never wait for each other. The leader adds rows up. Capsules of builds do not
-- count.
CREATE TABLE capsule_counts (
    team_id uuid NOT NULL,
    status text NOT NULL,
    delta bigint NOT NULL
);
CREATE INDEX capsule_counts_by_team ON capsule_counts (team_id);
INSERT INTO capsule_counts (team_id, status, delta)
    SELECT team_id, status, count(*) FROM capsules WHERE build_id IS NULL
    GROUP BY team_id, status;

CREATE FUNCTION count_capsule() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO capsule_counts (team_id, status, delta)
            VALUES (NEW.team_id, NEW.status, 1);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO capsule_counts (team_id, status, delta)
            VALUES (OLD.team_id, OLD.status, -1);
    ELSE
        INSERT INTO capsule_counts (team_id, status, delta)
            VALUES (OLD.team_id, OLD.status, -1),
            (NEW.team_id, NEW.status, 1);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER capsule_came AFTER INSERT ON capsules FOR EACH ROW
    WHEN (NEW.build_id IS NULL) EXECUTE FUNCTION count_capsule();
CREATE TRIGGER capsule_went AFTER DELETE ON capsules FOR EACH ROW
    WHEN (OLD.build_id IS NULL) EXECUTE FUNCTION count_capsule();
CREATE TRIGGER capsule_counted AFTER UPDATE OF status ON capsules FOR EACH ROW
    WHEN (NEW.build_id IS NULL AND OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION count_capsule();

-- Events of every change, with their actor: state changes and settings of capsules, and the team's
-- keys, members, invitations, limits, builds and tags.
--
-- The statement of a change names its actor in the setting `wrenn.actor`, which lasts until the end
-- of the transaction. The setting is JSON: `type` (`user`, `api_key` or `system`), `id` (as the API
-- writes it), `uuid` (of the user or the key) and `reason` (why the platform acts by itself). The
-- actor is `system` if the setting is absent, as with programs before this migration. No event
-- holds a secret or an address of a person.

-- The locks come first, and that of events last, as in each transaction that writes an event. A
-- transaction would otherwise wait for events while the migration waits for the transaction.
LOCK TABLE capsules, template_tags, api_keys, memberships, invitations, team_limits, teams
    IN SHARE ROW EXCLUSIVE MODE;
LOCK TABLE events IN ACCESS EXCLUSIVE MODE;

-- NULL in events from before this migration.
ALTER TABLE events ADD actor_type text;
ALTER TABLE events ADD actor_id text;
-- Name of the user or key at the time of the event.
ALTER TABLE events ADD actor_label text;
-- Generation of the capsule or build. NULL for other resources.
ALTER TABLE events ADD generation bigint;

-- History of one resource, and of kinds.
CREATE INDEX events_by_resource ON events (team_id, resource_id, transaction, seq);
CREATE INDEX events_by_kind ON events (team_id, kind, transaction, seq);
-- Events that name a user, for the erasure of the user.
CREATE INDEX events_by_user ON events (actor_id) WHERE actor_type = 'user';
CREATE INDEX events_of_members ON events (resource_id) WHERE resource_type = 'member';

-- ── Removed events ─────────────────────────────────────────────────────────────────────────────

-- Last event of each team that was removed for its age. A cursor before it may have missed events.
CREATE TABLE event_floors (
    team_id uuid PRIMARY KEY REFERENCES teams ON DELETE CASCADE,
    transaction xid8 NOT NULL,
    seq bigint NOT NULL
);
-- Events may have been removed before this table existed.
INSERT INTO event_floors (team_id, transaction, seq)
    SELECT t.id, e.transaction, e.seq - 1 FROM teams t, LATERAL (
        SELECT o.transaction, o.seq FROM events o WHERE o.team_id = t.id
        ORDER BY o.transaction, o.seq LIMIT 1) e;

CREATE FUNCTION events_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The team itself is gone if its removal removed the events.
    INSERT INTO event_floors AS f (team_id, transaction, seq)
        SELECT DISTINCT ON (g.team_id) g.team_id, g.transaction, g.seq
        FROM gone g JOIN teams t ON t.id = g.team_id
        ORDER BY g.team_id, g.transaction DESC, g.seq DESC
        ON CONFLICT (team_id) DO UPDATE
        SET transaction = excluded.transaction, seq = excluded.seq
        WHERE (f.transaction, f.seq) < (excluded.transaction, excluded.seq);
    RETURN NULL;
END $$;
CREATE TRIGGER events_removed AFTER DELETE ON events REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION events_removed();

-- ── Writing events ─────────────────────────────────────────────────────────────────────────────

DROP FUNCTION write_event(uuid, text, text, uuid, jsonb);

-- Writes an event with the actor of the transaction, and a delivery for each channel that wants it.
-- Announces nothing.
CREATE FUNCTION write_event(
    team uuid, kind text, resource_type text, resource uuid, data jsonb, generation bigint)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    -- After a transaction with the setting, the session has an empty one.
    actor jsonb := nullif(current_setting('wrenn.actor', true), '')::jsonb;
    made events;
BEGIN
    INSERT INTO events (team_id, kind, resource_type, resource_id, data, generation, actor_type,
            actor_id, actor_label)
        VALUES (team, write_event.kind, write_event.resource_type, resource,
            CASE WHEN actor ? 'reason'
                THEN write_event.data || jsonb_build_object('reason', actor -> 'reason')
                ELSE write_event.data END,
            write_event.generation,
            coalesce(actor ->> 'type', 'system'), coalesce(actor ->> 'id', 'system'),
            CASE actor ->> 'type'
                WHEN 'api_key' THEN
                    (SELECT k.name FROM api_keys k WHERE k.id = (actor ->> 'uuid')::uuid)
                WHEN 'user' THEN
                    (SELECT u.name FROM users u WHERE u.id = (actor ->> 'uuid')::uuid) END)
        RETURNING * INTO made;
    INSERT INTO deliveries (channel_id, kind, body)
        SELECT c.id, write_event.kind, to_jsonb(made) FROM channels c
        WHERE c.team_id = team AND c.enabled
        AND (c.events = '{}' OR write_event.kind = ANY(c.events));
END $$;

-- Writes an event, and wakes its readers on every replica.
CREATE FUNCTION emit(
    team uuid, kind text, resource_type text, resource uuid, data jsonb, generation bigint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM write_event(team, emit.kind, emit.resource_type, resource, emit.data,
        emit.generation);
    PERFORM pg_notify('wrenn_changed', 'events:' || team);
END $$;

-- Writes an event of a resource without generations.
CREATE OR REPLACE FUNCTION emit(team uuid, kind text, resource_type text, resource uuid, data jsonb)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit(team, emit.kind, emit.resource_type, resource, emit.data, NULL::bigint);
END $$;

-- ── Capsules ───────────────────────────────────────────────────────────────────────────────────

-- Opens and closes usage intervals when a capsule changes its state, and writes the event.
-- A capsule that works for a build has usage, and no events.
--
-- The event of a new capsule announces nothing, since its next event follows soon. PostgreSQL lets
-- only one transaction at a time commit an announcement, with the wait for its disk. The replica of
-- the create wakes its own readers, and every reader looks for itself after some seconds.
CREATE OR REPLACE FUNCTION capsule_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was text := CASE WHEN TG_OP = 'UPDATE' THEN OLD.status ELSE 'none' END;
    computed boolean := was IN ('running', 'pausing');
    computes boolean := NEW.status IN ('running', 'pausing');
    told text := CASE NEW.status
        WHEN 'starting' THEN 'capsule.created' WHEN 'running' THEN 'capsule.running'
        WHEN 'pausing' THEN 'capsule.pausing' WHEN 'paused' THEN 'capsule.paused'
        WHEN 'resuming' THEN 'capsule.resuming' WHEN 'missing' THEN 'capsule.missing'
        WHEN 'error' THEN 'capsule.error' WHEN 'stopping' THEN 'capsule.stopping'
        WHEN 'stopped' THEN 'capsule.destroyed' END;
    details jsonb;
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
    IF told IS NULL OR NEW.build_id IS NOT NULL THEN
        RETURN NULL;
    END IF;
    details := jsonb_strip_nulls(jsonb_build_object(
        'previous', nullif(was, 'none'), 'template', NEW.template, 'error', NEW.error));
    IF was = 'none' THEN
        PERFORM write_event(NEW.team_id, told, 'capsule', NEW.id, details, NEW.generation);
    ELSE
        PERFORM emit(NEW.team_id, told, 'capsule', NEW.id, details, NEW.generation);
    END IF;
    RETURN NULL;
END $$;

-- ── Builds and tags ────────────────────────────────────────────────────────────────────────────

DROP FUNCTION emit_build(uuid, uuid, uuid, text);

-- Writes an event of a build.
CREATE FUNCTION emit_build(team uuid, template uuid, build uuid, kind text, generation bigint)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit(team, emit_build.kind, 'template', template, jsonb_build_object(
        'build', build, 'name', (SELECT t.name FROM templates t WHERE t.id = template)),
        emit_build.generation);
END $$;

CREATE OR REPLACE FUNCTION build_began() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit_build(NEW.team_id, NEW.template_id, NEW.id, 'template.build.started',
        NEW.generation);
    RETURN NULL;
END $$;

-- Writes the event of a build that ends. A build that was superseded, or whose steps never came,
-- counts as cancelled.
CREATE OR REPLACE FUNCTION build_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit_build(NEW.team_id, NEW.template_id, NEW.id, CASE
        WHEN NEW.status = 'ready' THEN 'template.build.ready'
        WHEN NEW.cancelled THEN 'template.build.cancelled'
        ELSE 'template.build.failed' END, NEW.generation);
    RETURN NULL;
END $$;

CREATE FUNCTION tag_assigned() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    owner record;
BEGIN
    SELECT t.team_id, t.name INTO owner FROM templates t WHERE t.id = NEW.template_id;
    PERFORM emit(owner.team_id, 'template.tag.assigned', 'template', NEW.template_id,
        jsonb_build_object('tag', NEW.tag, 'build', NEW.build_id, 'name', owner.name));
    RETURN NULL;
END $$;
CREATE TRIGGER tag_assigned AFTER INSERT ON template_tags
    FOR EACH ROW EXECUTE FUNCTION tag_assigned();

-- The deletion of a tag sets `deleted_at` of all its assignments, and is one event.
CREATE FUNCTION tags_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    gone record;
BEGIN
    FOR gone IN SELECT DISTINCT c.template_id, c.tag, t.team_id, t.name FROM changed c
        JOIN templates t ON t.id = c.template_id WHERE c.deleted_at IS NOT NULL
    LOOP
        PERFORM emit(gone.team_id, 'template.tag.deleted', 'template', gone.template_id,
            jsonb_build_object('tag', gone.tag, 'name', gone.name));
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER tags_deleted AFTER UPDATE ON template_tags REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION tags_deleted();

-- ── Keys, members and invitations ──────────────────────────────────────────────────────────────

CREATE FUNCTION key_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit(NEW.team_id, CASE TG_OP WHEN 'INSERT' THEN 'key.created' ELSE 'key.revoked' END,
        'api_key', NEW.id, jsonb_build_object('name', NEW.name));
    RETURN NULL;
END $$;
CREATE TRIGGER key_created AFTER INSERT ON api_keys FOR EACH ROW EXECUTE FUNCTION key_moved();
CREATE TRIGGER key_revoked AFTER UPDATE OF revoked_at ON api_keys FOR EACH ROW
    WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL) EXECUTE FUNCTION key_moved();

CREATE FUNCTION member_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM emit(NEW.team_id, 'member.added', 'member', NEW.user_id,
            jsonb_build_object('role', NEW.role));
    ELSIF TG_OP = 'UPDATE' THEN
        PERFORM emit(NEW.team_id, 'member.role', 'member', NEW.user_id,
            jsonb_build_object('role', NEW.role, 'previous', OLD.role));
    ELSE
        PERFORM emit(OLD.team_id, 'member.removed', 'member', OLD.user_id,
            jsonb_build_object('role', OLD.role));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER member_came_or_went AFTER INSERT OR DELETE ON memberships
    FOR EACH ROW EXECUTE FUNCTION member_moved();
CREATE TRIGGER member_role AFTER UPDATE OF role ON memberships FOR EACH ROW
    WHEN (OLD.role IS DISTINCT FROM NEW.role) EXECUTE FUNCTION member_moved();

CREATE FUNCTION invitation_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM emit(OLD.team_id, 'invitation.removed', 'invitation', OLD.id,
            jsonb_strip_nulls(jsonb_build_object('role', OLD.role,
                'reason', CASE WHEN OLD.expires_at <= now() THEN 'expired' END)));
    ELSE
        PERFORM emit(NEW.team_id, 'invitation.created', 'invitation', NEW.id,
            jsonb_build_object('role', NEW.role));
    END IF;
    RETURN NULL;
END $$;
-- A new invitation to the same e-mail takes the row of the earlier one, with another token.
CREATE TRIGGER invitation_moved AFTER INSERT OR DELETE OR UPDATE OF token_hash ON invitations
    FOR EACH ROW EXECUTE FUNCTION invitation_moved();

-- ── Teams and limits ───────────────────────────────────────────────────────────────────────────

-- Returns the names of the columns in which two rows differ, as a JSON array.
CREATE FUNCTION changed_columns(was jsonb, is_now jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_agg(n.key ORDER BY n.key), '[]') FROM jsonb_each(is_now) n
        WHERE n.value IS DISTINCT FROM coalesce(was -> n.key, 'null')
$$;

CREATE FUNCTION team_edited() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    fields jsonb := changed_columns(to_jsonb(OLD), to_jsonb(NEW));
BEGIN
    IF NEW.deleted_at IS NULL AND fields <> '[]' THEN
        PERFORM emit(NEW.id, 'team.changed', 'team', NEW.id, jsonb_build_object('fields', fields));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER team_edited AFTER UPDATE ON teams FOR EACH ROW EXECUTE FUNCTION team_edited();

CREATE FUNCTION limits_edited() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was jsonb := CASE TG_OP WHEN 'UPDATE' THEN to_jsonb(OLD) ELSE '{}' END;
    fields jsonb := changed_columns(was - 'team_id', to_jsonb(NEW) - 'team_id');
BEGIN
    IF fields <> '[]' THEN
        PERFORM emit(NEW.team_id, 'team.limits', 'team', NEW.team_id,
            jsonb_build_object('fields', fields));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER limits_edited AFTER INSERT OR UPDATE ON team_limits
    FOR EACH ROW EXECUTE FUNCTION limits_edited();

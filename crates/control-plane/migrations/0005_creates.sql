-- Functions by which a create is one statement, and events that announce nothing.

-- Keeps a team from being ended until the transaction ends, and counts its live capsules. The sums
-- leave out capsules without a machine. Returns no row if the team has ended. Callers with
-- `counted` wait for each other; the others get zeroes.
--
-- The function must stay VOLATILE: each of its statements then sees everything that was committed
-- before it began. The count therefore includes the capsules of all who held the lock before.
CREATE FUNCTION admit_capsule(team uuid, counted boolean)
RETURNS TABLE (capsules bigint, vcpus bigint, memory_mib bigint)
LANGUAGE plpgsql VOLATILE ROWS 1 AS $$
BEGIN
    PERFORM 1 FROM teams t WHERE t.id = team AND t.deleted_at IS NULL FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF NOT counted THEN
        RETURN QUERY SELECT 0::bigint, 0::bigint, 0::bigint;
        RETURN;
    END IF;
    -- The lock of `db::limits::hold`.
    PERFORM pg_advisory_xact_lock(hashtextextended(team::text, 6));
    RETURN QUERY SELECT count(*),
        coalesce(sum(c.vcpus) FILTER (WHERE c.status NOT IN ('paused', 'error')), 0),
        coalesce(sum(c.memory_mib) FILTER (WHERE c.status NOT IN ('paused', 'error')), 0)
        FROM capsules c WHERE c.team_id = team AND c.status <> 'stopped';
END $$;

-- Counts a create of a capsule from a template. Returns the new count.
CREATE FUNCTION count_spawn(template uuid) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    spawns bigint;
BEGIN
    UPDATE templates t SET spawn_count = t.spawn_count + 1, last_spawned_at = now()
        WHERE t.id = template RETURNING t.spawn_count INTO spawns;
    RETURN spawns;
END $$;

-- Writes an event, and a delivery for each channel that wants it. Announces nothing.
CREATE FUNCTION write_event(team uuid, kind text, resource_type text, resource uuid, data jsonb)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    made events;
BEGIN
    INSERT INTO events (team_id, kind, resource_type, resource_id, data)
        VALUES (team, write_event.kind, write_event.resource_type, resource, write_event.data)
        RETURNING * INTO made;
    INSERT INTO deliveries (channel_id, kind, body)
        SELECT c.id, write_event.kind, to_jsonb(made) FROM channels c
        WHERE c.team_id = team AND c.enabled
        AND (c.events = '{}' OR write_event.kind = ANY(c.events));
END $$;

-- Writes an event, and wakes its readers on every replica.
CREATE OR REPLACE FUNCTION emit(team uuid, kind text, resource_type text, resource uuid, data jsonb)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM write_event(team, emit.kind, emit.resource_type, resource, emit.data);
    PERFORM pg_notify('wrenn_changed', 'events:' || team);
END $$;

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
        WHEN 'paused' THEN 'capsule.paused' WHEN 'error' THEN 'capsule.error'
        WHEN 'missing' THEN 'capsule.missing' WHEN 'stopped' THEN 'capsule.destroyed' END;
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
        PERFORM write_event(NEW.team_id, told, 'capsule', NEW.id, details);
    ELSE
        PERFORM emit(NEW.team_id, told, 'capsule', NEW.id, details);
    END IF;
    RETURN NULL;
END $$;

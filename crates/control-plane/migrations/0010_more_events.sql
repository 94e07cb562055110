-- Events of capsules' settings, of webhooks, of logins to registries and of templates. No event
-- holds a URL, a user name or a secret.

-- Creates lock the tables in this order, so that no create and this migration wait for each other.
LOCK TABLE capsules, templates, channels, registry_logins IN SHARE ROW EXCLUSIVE MODE;

-- ── Capsules ───────────────────────────────────────────────────────────────────────────────────

-- Writes the event of changed settings, with the names of the settings in the API.
CREATE FUNCTION capsule_edited() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- A host counts the remaining time anew, so the same end differs by moments.
    same_end boolean := coalesce(
        abs(extract(epoch FROM NEW.ends_at - OLD.ends_at)) < 1,
        NEW.ends_at IS NULL AND OLD.ends_at IS NULL);
    fields text[] := array_remove(ARRAY[
        CASE WHEN NEW.name IS DISTINCT FROM OLD.name THEN 'name' END,
        CASE WHEN NEW.metadata <> OLD.metadata THEN 'metadata' END,
        CASE WHEN NOT same_end THEN 'lifetime' END,
        CASE WHEN NEW.timeout_sec <> OLD.timeout_sec THEN 'idle_timeout' END,
        CASE WHEN NEW.on_timeout <> OLD.on_timeout THEN 'on_timeout' END,
        CASE WHEN NEW.auto_resume <> OLD.auto_resume THEN 'auto_resume' END,
        CASE WHEN NEW.public_ports <> OLD.public_ports THEN 'public_ports' END,
        CASE WHEN NEW.public_traffic <> OLD.public_traffic THEN 'public_traffic' END,
        CASE WHEN NEW.host_header IS DISTINCT FROM OLD.host_header THEN 'host_header' END,
        CASE WHEN NEW.egress - 'revision' <> OLD.egress - 'revision' THEN 'network' END,
        CASE WHEN NEW.traffic_token <> OLD.traffic_token THEN 'traffic_token' END,
        CASE WHEN NEW.link_generation <> OLD.link_generation THEN 'links' END,
        CASE WHEN NEW.logs <> OLD.logs THEN 'logs' END], NULL);
BEGIN
    IF fields <> '{}' AND NEW.status <> 'stopped' AND NEW.build_id IS NULL THEN
        PERFORM emit(NEW.team_id, 'capsule.changed', 'capsule', NEW.id,
            jsonb_build_object('fields', fields), NEW.generation);
    END IF;
    RETURN NULL;
END $$;
-- A trigger with columns runs only for statements that set one of them. Moves set none. A statement
-- that sets only `ends_at` completes a move, so that column is absent here.
CREATE TRIGGER capsule_edited AFTER UPDATE OF name, metadata, timeout_sec, on_timeout, auto_resume,
    public_ports, public_traffic, host_header, egress, traffic_token, link_generation, logs
    ON capsules FOR EACH ROW EXECUTE FUNCTION capsule_edited();

-- ── Webhooks ───────────────────────────────────────────────────────────────────────────────────

CREATE FUNCTION channel_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    fields text[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM emit(NEW.team_id, 'channel.created', 'channel', NEW.id,
            jsonb_build_object('name', NEW.name));
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM emit(OLD.team_id, 'channel.deleted', 'channel', OLD.id,
            jsonb_build_object('name', OLD.name));
    ELSE
        fields := array_remove(ARRAY[
            CASE WHEN NEW.name <> OLD.name THEN 'name' END,
            CASE WHEN NEW.url <> OLD.url THEN 'url' END,
            CASE WHEN NEW.events <> OLD.events THEN 'events' END,
            CASE WHEN NEW.enabled <> OLD.enabled THEN 'enabled' END,
            CASE WHEN NEW.version <> OLD.version THEN 'secret' END], NULL);
        IF fields <> '{}' THEN
            PERFORM emit(NEW.team_id, 'channel.changed', 'channel', NEW.id,
                jsonb_build_object('name', NEW.name, 'fields', fields));
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER channel_moved AFTER INSERT OR UPDATE OR DELETE ON channels
    FOR EACH ROW EXECUTE FUNCTION channel_moved();

-- ── Logins to registries ───────────────────────────────────────────────────────────────────────

-- A login has no id, so its events are about the team.
CREATE FUNCTION registry_login_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM emit(OLD.team_id, 'registry.logout', 'team', OLD.team_id,
            jsonb_build_object('registry', OLD.registry));
    ELSE
        PERFORM emit(NEW.team_id, 'registry.login', 'team', NEW.team_id,
            jsonb_build_object('registry', NEW.registry));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER registry_login_moved AFTER INSERT OR UPDATE OR DELETE ON registry_logins
    FOR EACH ROW EXECUTE FUNCTION registry_login_moved();

-- ── Templates ──────────────────────────────────────────────────────────────────────────────────

CREATE FUNCTION template_moved() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    fields text[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM emit(NEW.team_id, 'template.created', 'template', NEW.id,
            jsonb_build_object('name', NEW.name));
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM emit(OLD.team_id, 'template.deleted', 'template', OLD.id,
            jsonb_build_object('name', OLD.name));
    ELSE
        fields := array_remove(ARRAY[
            CASE WHEN NEW.public <> OLD.public THEN 'public' END,
            CASE WHEN NEW.common <> OLD.common THEN 'common' END,
            CASE WHEN NEW.isolation <> OLD.isolation THEN 'isolation' END], NULL);
        IF fields <> '{}' THEN
            PERFORM emit(NEW.team_id, 'template.changed', 'template', NEW.id,
                jsonb_build_object('name', NEW.name, 'fields', fields));
        END IF;
    END IF;
    RETURN NULL;
END $$;
-- A create counts itself in `spawn_count`, and must run no trigger.
CREATE TRIGGER template_moved AFTER INSERT OR DELETE OR UPDATE OF public, common, isolation
    ON templates FOR EACH ROW EXECUTE FUNCTION template_moved();

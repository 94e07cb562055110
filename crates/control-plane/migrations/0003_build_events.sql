-- Events of builds that begin, and of builds that a request ended.

-- Writes an event of a build.
CREATE FUNCTION emit_build(team uuid, template uuid, build uuid, kind text)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit(team, emit_build.kind, 'template', template, jsonb_build_object(
        'build', build, 'name', (SELECT t.name FROM templates t WHERE t.id = template)));
END $$;

CREATE FUNCTION build_began() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit_build(NEW.team_id, NEW.template_id, NEW.id, 'template.build.started');
    RETURN NULL;
END $$;
CREATE TRIGGER build_began AFTER UPDATE OF status ON builds FOR EACH ROW
    WHEN (OLD.status = 'waiting' AND NEW.status = 'building') EXECUTE FUNCTION build_began();
-- A build whose request has its steps begins with its row.
CREATE TRIGGER build_began_at_once AFTER INSERT ON builds FOR EACH ROW
    WHEN (NEW.status = 'building') EXECUTE FUNCTION build_began();

-- Writes the event of a build that ends. A build that was superseded, or whose steps never came,
-- counts as cancelled.
CREATE OR REPLACE FUNCTION build_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM emit_build(NEW.team_id, NEW.template_id, NEW.id, CASE
        WHEN NEW.status = 'ready' THEN 'template.build.ready'
        WHEN NEW.cancelled THEN 'template.build.cancelled'
        ELSE 'template.build.failed' END);
    RETURN NULL;
END $$;

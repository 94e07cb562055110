-- Preview links are signed with the platform's own secret and carry this number: a larger one ends
-- every older link of the capsule.
ALTER TABLE capsules ADD COLUMN link_generation bigint NOT NULL DEFAULT 1;

-- The proxy's caches hear of every column that they hold.
DROP TRIGGER capsule_changed ON capsules;
CREATE TRIGGER capsule_changed AFTER DELETE OR
    UPDATE OF status, team_id, host_id, envd_token, traffic_token, link_generation, public_ports,
    public_traffic, host_header, auto_resume ON capsules
    FOR EACH ROW EXECUTE FUNCTION tell_of_capsule();

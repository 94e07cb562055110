-- Tiers of isolation: what a host gives, and the least that a team, or a template, is content
-- with. The words are those of `types::Isolation`.

ALTER TABLE hosts ADD COLUMN isolation text NOT NULL DEFAULT 'none';
ALTER TABLE teams ADD COLUMN isolation text NOT NULL DEFAULT 'none'
    CHECK (isolation IN ('none', 'tcg', 'kvm', 'jailed'));
ALTER TABLE templates ADD COLUMN isolation text NOT NULL DEFAULT 'none'
    CHECK (isolation IN ('none', 'tcg', 'kvm', 'jailed'));

-- Until a host is heard of again.
UPDATE hosts SET isolation = accelerator WHERE accelerator IN ('tcg', 'kvm');

-- A team's is cached with its limits.
CREATE FUNCTION tell_of_tier() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wrenn_changed', 'team:' || NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER tier_changed AFTER UPDATE OF isolation ON teams
    FOR EACH ROW EXECUTE FUNCTION tell_of_tier();

-- Logs of capsules: the output that they keep, and logs that are to be erased. Hosts and the store
-- hold the logs themselves.

-- Creates lock the tables in this order, so that no create and this migration wait for each other.
LOCK TABLE capsules, teams IN ACCESS EXCLUSIVE MODE;

-- Output that the logs of the team's new capsules keep: `none`, `background` (console, state
-- changes, start commands and background processes) or `all` (foreground commands too).
ALTER TABLE teams ADD logs text NOT NULL DEFAULT 'background'
    CHECK (logs IN ('none', 'background', 'all'));
-- True once the logs of a team that has ended are erased.
ALTER TABLE teams ADD logs_erased boolean NOT NULL DEFAULT false;
CREATE TRIGGER logs_changed AFTER UPDATE OF logs ON teams
    FOR EACH ROW EXECUTE FUNCTION tell_of_tier();

-- Output that the capsule's log keeps.
ALTER TABLE capsules ADD logs text NOT NULL DEFAULT 'background'
    CHECK (logs IN ('none', 'background', 'all'));
-- Time of the last request to erase the capsule's log. NULL once the log is erased.
ALTER TABLE capsules ADD erase_logs_since timestamptz;
CREATE INDEX capsules_to_erase ON capsules (id) WHERE erase_logs_since IS NOT NULL;

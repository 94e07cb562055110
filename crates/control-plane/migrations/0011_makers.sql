-- Who made what lets others in, so that it ends with its maker.

-- The key that a key was made with. Revoking a key revokes the keys that were made with it.
ALTER TABLE api_keys ADD COLUMN made_by_key uuid REFERENCES api_keys ON DELETE SET NULL;
-- The key under which its requests and creates are counted; itself when null.
ALTER TABLE api_keys ADD COLUMN counted_as uuid REFERENCES api_keys ON DELETE SET NULL;
CREATE INDEX api_keys_by_maker ON api_keys (made_by_key) WHERE made_by_key IS NOT NULL;

-- `invited_by` is the user, or who made the key. Invitations of unknown makers end: a removed
-- admin may have made them with a key.
ALTER TABLE invitations ADD COLUMN made_by_key uuid REFERENCES api_keys ON DELETE CASCADE;
DELETE FROM invitations WHERE invited_by IS NULL;
CREATE INDEX invitations_by_maker ON invitations (invited_by);

ALTER TABLE channels ADD COLUMN created_by uuid REFERENCES users ON DELETE SET NULL;
ALTER TABLE channels ADD COLUMN made_by_key uuid REFERENCES api_keys ON DELETE SET NULL;
CREATE INDEX channels_by_maker ON channels (created_by) WHERE created_by IS NOT NULL;

-- Tokens without a maker are the platform's own.
ALTER TABLE host_tokens ADD COLUMN created_by uuid REFERENCES users ON DELETE CASCADE;
ALTER TABLE host_tokens ADD COLUMN made_by_key uuid REFERENCES api_keys ON DELETE CASCADE;
ALTER TABLE user_tokens ADD COLUMN created_by uuid REFERENCES users ON DELETE CASCADE;
ALTER TABLE user_tokens ADD COLUMN made_by_key uuid REFERENCES api_keys ON DELETE CASCADE;

-- A sign-up changes no account: its password and name wait with its own mailed token.
ALTER TABLE user_tokens ADD COLUMN password_hash text;
ALTER TABLE user_tokens ADD COLUMN name text;
UPDATE user_tokens t SET password_hash = u.password_hash, name = u.name FROM users u
    WHERE u.id = t.user_id AND t.kind = 'activate' AND u.status = 'inactive';
UPDATE users SET password_hash = NULL WHERE status = 'inactive';

-- A provider is added in the session that asked for it, and in no other.
ALTER TABLE sign_ins ADD COLUMN session_id uuid REFERENCES sessions ON DELETE CASCADE;
DELETE FROM sign_ins WHERE user_id IS NOT NULL;
CREATE INDEX sign_ins_by_session ON sign_ins (session_id) WHERE session_id IS NOT NULL;

-- Whether a key is valid at this moment.
CREATE FUNCTION key_stands(key uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT 1 FROM api_keys k WHERE k.id = key AND k.revoked_at IS NULL
        AND (k.expires_at IS NULL OR k.expires_at > now()))
$$;

-- Whether who made something for the platform may still do so. `maker` is a user, or who made
-- the key; what neither made is the platform's own.
CREATE FUNCTION operator_stands(maker uuid, key uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT (maker IS NULL OR EXISTS (SELECT 1 FROM users u
            WHERE u.id = maker AND u.status = 'active' AND u.is_admin))
        AND (key IS NULL OR key_stands(key)
            AND EXISTS (SELECT 1 FROM api_keys k WHERE k.id = key AND k.operator))
$$;

-- Whether who invited somebody to a team may still do so.
CREATE FUNCTION inviter_stands(team uuid, maker uuid, key uuid) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT (maker IS NOT NULL OR key IS NOT NULL)
        AND (maker IS NULL OR EXISTS (SELECT 1 FROM memberships m JOIN users u ON u.id = m.user_id
            WHERE m.team_id = team AND m.user_id = maker AND m.role IN ('owner', 'admin')
            AND u.status = 'active'))
        AND (key IS NULL OR key_stands(key))
$$;

-- Finds the channels of keys that have expired without a look at all others.
CREATE INDEX channels_by_key ON channels (made_by_key) WHERE enabled AND made_by_key IS NOT NULL;

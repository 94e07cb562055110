-- Which snapshot of a capsule the store has, exactly; and what an older program can still serve.

-- Name of the tree of the snapshot `stored`; empty where its number alone names it.
ALTER TABLE capsules ADD COLUMN stored_tree text NOT NULL DEFAULT '';
-- Generation of the command that placed the capsule on its host. What its host has of an earlier
-- generation is a leftover. 0 for capsules that never moved, or moved before this was written.
ALTER TABLE capsules ADD COLUMN placed bigint NOT NULL DEFAULT 0;

-- The oldest migration that a program must know to work with this schema. A migration that an
-- older program cannot work with raises it.
CREATE TABLE schema_floor (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    version bigint NOT NULL
);
INSERT INTO schema_floor (version) VALUES (10);

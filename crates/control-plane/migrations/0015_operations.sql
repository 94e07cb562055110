-- Names the pause or resume that is under way, with its parameters. A request for the same
-- operation joins it, on whichever control plane. An empty name is joined by every request.
ALTER TABLE capsules ADD COLUMN operation text NOT NULL DEFAULT '';

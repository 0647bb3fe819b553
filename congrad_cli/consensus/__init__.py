"""``congrad consensus``: one direction that is good for every group. numpy only."""

"""``congrad filter``: the pairs that agree with the consensus. numpy only."""

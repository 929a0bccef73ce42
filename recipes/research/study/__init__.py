"""What harmonization buys: rules compared on clips with known truth, under several kinds of noise."""

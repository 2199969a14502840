"""The search over values of a config: what is searched, who proposes, who stops, what came out."""

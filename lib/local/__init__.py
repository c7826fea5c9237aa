"""The local engine, a stand-in for the serverless engine on one machine, and what starts workers with it."""

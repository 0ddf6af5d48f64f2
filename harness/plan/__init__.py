"""The plan of a session: the cards combined with the request, before anything starts."""

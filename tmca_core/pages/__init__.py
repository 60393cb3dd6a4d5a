"""What the web pages of both ends share: their look, their headers and how they are served."""

"""What tests share: servers, processes, waiting, actors. Production code never imports from here."""

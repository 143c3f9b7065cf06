"""Complete small programs that use Packhorse; each is a package with its own page in docs/."""

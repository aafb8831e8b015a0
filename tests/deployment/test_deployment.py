"""Tests of the deployment commands of deploy-api.sh: real PostgreSQL, and a program that pretends to be Docker."""

import hashlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVER = f"postgresql://postgres@127.0.0.1:{os.environ['TEST_PG_PORT']}"
TEMPLATE = "migrated"
SECRET = hashlib.sha256(b"of production").hexdigest()
PASSWORD = hashlib.sha256(b"password").hexdigest()[:40]
PORTS_ARE_FREE = "is_listening() { false; }"


def psql(database, sql):
    command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, f"{SERVER}/{database}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def setUpModule():
    psql("postgres", f"CREATE DATABASE {TEMPLATE}")
    env = os.environ | {"DATABASE_URL": f"{SERVER}/{TEMPLATE}"}
    subprocess.run([os.environ["PROGRAM"], "migrate", "up"], env=env, check=True, capture_output=True)
    psql(TEMPLATE, "INSERT INTO agents (name, url) SELECT 'agent ' || n, 'http://a' FROM generate_series(1, 7) AS n")


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.server.is_ready or self.path == "/health" else 503)
        self.end_headers()
        self.wfile.write(b'{"status":"of the test"}')

    def log_message(self, *_):
        pass


class Case(unittest.TestCase):
    """A checkout of its own with deploy-api.sh, and a database of its own."""

    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="deployment."))
        self.addCleanup(shutil.rmtree, self.root)
        for name in ("deploy-api.sh", "docker-compose.yml", ".env", ".env.api.example"):
            shutil.copy(ROOT / name, self.root)
        shutil.copytree(ROOT / "deploy" / "lib", self.root / "deploy" / "lib")
        self.tools = self.root / "tools"
        self.tools.mkdir()
        self.env = {name: os.environ[name] for name in ("PROGRAM", "HOME")}
        self.env |= {"PATH": f"{self.tools}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        self.database = self.new_database(TEMPLATE)

    def new_database(self, template="template0"):
        name = f"test_{self.id().rsplit('.', 1)[1][:30]}_{os.urandom(4).hex()}"
        psql("postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def tool(self, name, body):
        path = self.tools / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def call(self, *arguments, expect=0, env=None):
        process = subprocess.run(
            ["./deploy-api.sh", *arguments], cwd=self.root, env=self.env | (env or {}), stdin=subprocess.DEVNULL,
            capture_output=True, text=True)
        self.output, self.messages = process.stdout, process.stderr
        self.assertEqual(process.returncode, expect, f"{arguments}\n{self.output}\n{self.messages}")
        return self.output

    def assert_says(self, *texts):
        for text in texts:
            self.assertIn(text, self.messages)


class Usage(Case):
    def test_wrong_usage_ends_with_2_and_the_reason(self):
        for arguments in (
            [], ["unknown"], ["dev", "now"], ["prod", "--unknown"], ["prod", "--image"], ["status", "api"], ["health", "x"],
            ["logs", "--unknown"], ["backup", "--keep"], ["backup", "--keep", "all"], ["backup", "here"], ["restore"],
            ["restore", "--unknown"], ["restore", "a", "b"], ["rollback", "--to"], ["rollback", "now"],
        ):
            self.call(*arguments, expect=2)
            self.assertRegex(self.messages, "Usage:|error: .*; see: ./deploy-api.sh help")
        self.assertIn("rollback [--dry-run]", self.call("help"))


class OnHost(Case):
    """With DATABASE_URL in the environment."""

    def setUp(self):
        super().setUp()
        self.env["DATABASE_URL"] = f"{SERVER}/{self.database}"

    def into(self, database):
        return {"DATABASE_URL": f"{SERVER}/{database}"}

    def backup(self, *arguments):
        return pathlib.Path(self.call("backup", *arguments).strip())

    def test_migrate_runs_any_command_of_the_program(self):
        self.call("migrate", "down", "1")
        self.assertIn("missing", self.call("migrate", "status", expect=1))
        self.call("migrate")
        self.assertNotIn("missing", self.call("migrate", "status"))
        self.call("migrate", env=self.into("no_such_database"), expect=1)
        self.assert_says('database "no_such_database" does not exist')

    def test_a_backup_has_a_manifest_and_is_restored_with_equal_rows(self):
        backup = self.backup()
        self.assertEqual(backup.parent, self.root / "backups")
        self.assertEqual({path.name for path in backup.iterdir()}, {"database.dump", "manifest.json"})
        self.assertEqual([path.stat().st_mode & 0o077 for path in (backup, *backup.iterdir())], [0, 0, 0])
        manifest = json.loads((backup / "manifest.json").read_text())
        dump = (backup / "database.dump").read_bytes()
        self.assertEqual(manifest["dump_bytes"], len(dump))
        self.assertEqual(manifest["dump_sha256"], hashlib.sha256(dump).hexdigest())
        newest = psql(self.database, "SELECT max(version) FROM _sqlx_migrations")
        self.assertEqual(str(manifest["schema_version"]), newest)
        self.assertTrue(manifest["version"].startswith("workflow-api "), manifest)
        self.assertEqual(manifest["rows"]["public.agents"], 7)
        self.assertEqual(manifest["rows"]["public.workflow_runs"], 0)

        new = self.new_database()
        self.call("restore", str(backup), env=self.into(new))
        self.assertRegex(self.output, r"public\.agents +7 +7\n")
        self.assertEqual(psql(new, "SELECT count(*) FROM agents"), "7")
        self.call("migrate", "status", env=self.into(new))

    def test_a_backup_of_an_older_schema_is_migrated_by_its_restore(self):
        self.call("migrate", "down", "2", "--yes")
        backup = self.backup()
        new = self.new_database()
        self.call("restore", str(backup / "database.dump"), env=self.into(new))
        self.assertNotIn("missing", self.call("migrate", "status", env=self.into(new)))

    def test_restore_replaces_a_database_only_by_force(self):
        backup = self.backup()
        psql(self.database, "DELETE FROM agents; CREATE TABLE of_a_later_release ()")
        self.call("restore", str(backup), expect=1)
        self.assert_says("database: is not empty", "--force")
        self.call("restore", "--force", str(backup))
        self.assertEqual(psql(self.database, "SELECT count(*), to_regclass('of_a_later_release') FROM agents"), "7|")
        owned = "SELECT pg_get_userbyid(nspowner), has_schema_privilege('public', 'public', 'usage') FROM pg_namespace WHERE nspname = 'public'"
        self.assertEqual(psql(self.database, owned), "pg_database_owner|t")

    def test_backup_and_restore_use_the_host_of_several_that_accepts_writes(self):
        new = self.new_database()
        several = {"DATABASE_URL": f"{SERVER}/{self.database}".replace("@", "@127.0.0.1:1,")}
        backup = pathlib.Path(self.call("backup", env=several).strip())
        self.call("restore", str(backup), env={"DATABASE_URL": several["DATABASE_URL"].replace(self.database, new)})
        self.assertEqual(psql(new, "SELECT count(*) FROM agents"), "7")

    def test_restore_works_for_an_owner_who_is_no_superuser(self):
        backup = self.backup()
        new = self.new_database()
        role = f"owner_of_{new}"
        psql("postgres", f"CREATE ROLE {role} LOGIN; ALTER DATABASE {new} OWNER TO {role}")
        url = {"DATABASE_URL": SERVER.replace("postgres@", f"{role}@").replace("postgresql:", "postgresql+asyncpg:") + f"/{new}"}
        self.call("restore", str(backup), env=url)
        self.call("restore", "--force", str(backup), env=url)
        self.assertEqual(psql(new, "SELECT tableowner FROM pg_tables WHERE tablename = 'agents'"), role)

    def test_restore_refuses_a_damaged_or_unverified_backup(self):
        backup = self.backup()
        dump, new = backup / "database.dump", self.new_database()
        dump.write_bytes(dump.read_bytes()[:-1] + b"?")
        self.call("restore", str(backup), env=self.into(new), expect=1)
        self.assert_says("is damaged", "use another backup")
        (backup / "manifest.json").unlink()
        self.call("restore", str(backup), env=self.into(new), expect=1)
        self.assert_says("has no checksum", "sha256sum")
        self.call("restore", str(self.root / "none"), env=self.into(new), expect=1)
        self.assert_says("does not exist")
        self.assertEqual(psql(new, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0")

    def test_restore_accepts_a_dump_with_its_checksum_beside_it(self):
        shutil.move(self.backup() / "database.dump", self.root / "workflow-api-1.dump")
        self.call_in_root("sha256sum workflow-api-1.dump > workflow-api-1.dump.sha256")
        new = self.new_database()
        self.call("restore", "workflow-api-1.dump", env=self.into(new))
        self.assertEqual(psql(new, "SELECT count(*) FROM agents"), "7")

    def call_in_root(self, command):
        subprocess.run(command, shell=True, cwd=self.root, check=True)

    def test_a_restore_that_fails_leaves_the_database_as_it_was(self):
        backup = self.backup()
        # A dump that ends too early, with a right checksum.
        dump = backup / "database.dump"
        dump.write_bytes(dump.read_bytes()[: dump.stat().st_size * 4 // 5])
        self.call_in_root(f"sha256sum {dump} > {dump}.sha256; rm {backup}/manifest.json")
        psql(self.database, "DELETE FROM agents WHERE name = 'agent 1'")
        self.call("restore", "--force", str(dump), expect=1)
        self.assert_says("was rolled back")
        self.assertEqual(psql(self.database, "SELECT count(*) FROM agents"), "6")

    def test_restore_refuses_while_the_service_uses_the_database(self):
        backup = self.backup()
        session = subprocess.Popen(["psql", "-XAtq", f"{SERVER}/{self.database}"], env=os.environ | {"PGAPPNAME": "workflow-api"},
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(session.communicate)
        session.stdin.write("SELECT 1;\n")
        session.stdin.flush()
        session.stdout.readline()
        self.call("restore", "--force", str(backup), expect=1)
        self.assert_says("API or executor is using the database", "stop them first")

    def test_backup_keeps_the_newest_ones_after_the_hook(self):
        directory = self.root / "elsewhere"
        for name in ("workflow-api-20200101T000000Z", "workflow-api-20200102T000000Z", ".workflow-api-20200103T000000Z.part", "other"):
            (directory / name).mkdir(parents=True)
        self.env["BACKUP_HOOK"] = "false"
        self.call("backup", "--to", str(directory), "--keep", "2", expect=1)
        self.assert_says("hook: failed", "The backup is complete", "Old backups were kept")
        names = lambda: sorted(path.name for path in directory.iterdir() if path.name != ".lock")
        self.assertEqual(len(names()), 4, "one more, without the part")
        shutil.rmtree(directory / names()[-1])
        backup = self.backup("--to", str(directory), "--keep", "2", "--hook", 'cp -r "$BACKUP" copy')
        self.assertTrue((self.root / "copy" / "manifest.json").exists())
        self.assertEqual(names(), ["other", "workflow-api-20200102T000000Z", backup.name])

    def test_a_backup_that_fails_leaves_nothing(self):
        directory = self.root / "backups"
        self.tool("pg_dump", "echo half; echo 'pg_dump: broken' >&2; exit 1")
        self.call("backup", expect=1)
        self.assert_says("pg_dump: broken", "backup: failed", "Nothing was kept")
        (self.tools / "pg_dump").unlink()
        # The dump is read to its end: one that is incomplete is no backup.
        self.tool("pg_dump", f'PATH="${{PATH#*:}}"; pg_dump "$@" | head -c 20000')
        self.call("backup", expect=1)
        self.assertEqual([path.name for path in directory.iterdir()], [".lock"])

    def test_backup_refuses_a_full_disk(self):
        self.tool("df", "printf 'Filesystem 1024-blocks Used Available\\n/dev/x 100 99 1 99%% /\\n'")
        self.call("backup", expect=1)
        self.assert_says("disk: is full", "has 1024 bytes left", "--to")

    def test_a_second_backup_into_the_directory_is_refused(self):
        (self.root / "backups").mkdir()
        with (self.root / "backups" / ".lock").open("w") as lock:
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.call("backup", expect=1)
        self.assert_says("another backup into it is running")

    def test_a_database_that_cannot_be_used_is_named_without_its_password(self):
        url = {"DATABASE_URL": "postgresql://user:s3cret@127.0.0.1:1/none"}
        self.call("backup", env=url, expect=1)
        self.assert_says("database: cannot be used", "refused")
        self.assertNotIn("s3cret", self.messages)
        self.call("backup", env={"DATABASE_URL": "mysql://x"}, expect=1)
        self.assert_says("DATABASE_URL: is not a URL of the form")


class ComposeCase(Case):
    """With the program that pretends to be Docker."""

    spelling = "docker-compose"

    def setUp(self):
        super().setUp()
        self.fake = self.root / "fake"
        self.fake.mkdir()
        (self.fake / "state").write_text(json.dumps({"images": ["workflow-api:latest"], "containers": {}, "old": {}}))
        source = (ROOT / "tests" / "deployment" / "fake_docker").read_text().split("\n", 1)[1]
        for name in ("docker", "docker-compose"):
            # Without site packages and wrappers the interpreter starts faster.
            (self.tools / name).write_text(f"#!{sys.executable} -IS\n{source}")
            (self.tools / name).chmod(0o755)
        if self.spelling == "docker compose":
            (self.fake / "v2").touch()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
        self.server.is_ready = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.env |= {
            "FAKE_DOCKER": str(self.fake), "FAKE_DATABASE_URL": f"{SERVER}/{self.database}",
            "WORKFLOW_API_URL": f"http://127.0.0.1:{self.server.server_address[1]}",
        }
        # Whether ports of this machine are free must not matter.
        script = self.root / "deploy" / "lib" / "services.sh"
        script.write_text(script.read_text() + PORTS_ARE_FREE + "\n")

    def state(self, **changes):
        state = json.loads((self.fake / "state").read_text()) | changes
        (self.fake / "state").write_text(json.dumps(state))
        return state

    def compose_calls(self):
        """Calls of compose since the last time, without options, and the image each had."""
        calls = [json.loads(line) for line in (self.fake / "calls").read_text().splitlines()]
        (self.fake / "calls").write_text("")
        found = []
        for name, *arguments in calls:
            if name == "docker" and arguments[0] == "compose" and arguments[1] != "version":
                name, arguments = "docker compose", arguments[1:]
            if name != "docker":
                self.assertEqual(name, self.spelling)
                found.append(" ".join(arguments[:-1]))
        return found

    def write_production(self, **settings):
        defaults = {
            "JWT_SECRET": SECRET, "CORS_ORIGINS": "https://ui.example.com", "PUBLIC_URL": "https://api.example.com",
            "DATABASE_URL": f"postgresql://workflow_user:{PASSWORD}@db.example.com/workflow_db?sslmode=require",
            "TRUSTED_PROXIES": "10.0.0.1",
        }
        lines = [f"{name}={value}\n" for name, value in (defaults | settings).items() if value is not None]
        path = self.root / ".env.api.production"
        path.write_text("".join(lines))
        path.chmod(0o600)

    def write_own_database(self, **settings):
        """Production with the database of compose."""
        url = f"postgresql://workflow_user:{PASSWORD}@postgres:5432/workflow_db"
        self.write_production(DATABASE_URL=url, POSTGRES_PASSWORD=PASSWORD, **settings)



class InCompose(ComposeCase):
    def test_dev_deploys_a_fresh_clone_and_the_other_commands_look_after_it(self):
        output = self.call("dev")
        self.assertIn("/health 200", output)
        self.assertIn("/health/ready 200", output)
        self.assertEqual((self.root / ".env.api").read_text(), (ROOT / ".env.api.example").read_text())
        calls = [call for call in self.compose_calls() if " ps " not in call]
        words = [call.replace("--profile api ", "").split()[0] for call in calls]
        self.assertEqual(words, ["build", "up", "run", "up"], calls)
        self.assertNotIn("--env-file", " ".join(calls))

        self.assertRegex(self.call("status"), r"api-0 +running +healthy +workflow-api:\d+")
        self.server.is_ready = False
        self.call("health", expect=1)
        self.assert_says("/health/ready failed", "./deploy-api.sh status")
        containers = self.state()["containers"]
        self.state(containers=containers | {"executor-0": containers["executor-0"] | {"health": "unhealthy"}})
        self.assertRegex(self.call("status", expect=1), "executor-0 +running +unhealthy")
        self.assert_says("not healthy: executor", "logs executor")

        self.assertEqual(self.call("logs"), "a line of the log\n")
        self.assertIn("logs --follow --tail 100 api", self.compose_calls()[-1])
        self.call("logs", "--no-follow", "executor", "kafka")
        self.assertTrue(self.compose_calls()[-1].endswith("logs --tail 100 executor kafka"))
        # With the API up, then down.
        self.assertIn("applied", self.call("migrate", "status"))
        self.call("stop")
        self.assertIn(" down", self.compose_calls()[-1])
        self.assertEqual(self.state()["containers"], {})
        self.call("migrate")
        self.call("stop")
        self.call("status", expect=1)
        self.assert_says("nothing of this checkout runs", "./deploy-api.sh dev")

    def test_dev_keeps_the_settings_and_the_number_of_executors(self):
        (self.root / ".env.api").write_text("LOG_LEVEL=DEBUG\n")
        self.call("dev")
        running = self.state()["containers"]
        more = {"api-1": running["api-0"], "executor-1": running["executor-0"], "api-replica-0": running["api-0"]}
        self.state(containers=running | more)
        self.call("dev")
        self.assertEqual((self.root / ".env.api").read_text(), "LOG_LEVEL=DEBUG\n")
        self.assertIn("--profile replicas up -d --no-build --scale api=2 --scale executor=2 --scale api-replica=1", " ".join(self.compose_calls()))

    def test_dev_names_ports_that_others_use(self):
        script = self.root / "deploy" / "lib" / "services.sh"
        script.write_text(script.read_text().replace(PORTS_ARE_FREE, "is_listening() { true; }"))
        self.call("dev", expect=1)
        self.assert_says("8000 (api) 5432 (postgres) 9092 (kafka)", "ss -ltnp")

    def test_missing_tools_are_named(self):
        (self.fake / "down").touch()
        for command in ("dev", "prod", "logs", "migrate", "backup", "rollback"):
            self.call(command, expect=1)
            self.assert_says("docker: the daemon does not answer", "systemctl start docker")

    def test_backup_and_restore_use_the_container_of_the_database(self):
        self.call("dev")
        backup = self.call("backup").strip()
        psql(self.database, "DELETE FROM agents")
        self.call("restore", backup, "--force")
        self.assertEqual(psql(self.database, "SELECT count(*) FROM agents"), "7")
        self.assertIn("exec -T postgres", " ".join(self.compose_calls()))

    def test_production_needs_its_settings_file(self):
        self.call("prod", expect=1)
        self.assert_says(".env.api.production: does not exist", "grep -vE")

    def test_preflight_reports_every_problem_at_once(self):
        (self.root / ".env.api").write_text(f"ENCRYPTION_KEY={SECRET}\n")
        self.write_production(
            JWT_SECRET="your-secret-key-change-in-production", ENCRYPTION_KEY=SECRET, CORS_ORIGINS="*", API_RELOAD="true",
            DATABASE_URL="postgresql://workflow_user:workflow_pass@localhost:5432/workflow_db", LOG_LEVEL="api=INFO, debug",
            LOG_FORMAT="text", PUBLIC_URL=None, TRUSTED_PROXIES=None, KAFKA_BROKERS="127.0.0.1:9092")
        (self.root / ".env.api.production").chmod(0o644)
        (self.fake / "public-port").touch()
        self.tool("df", "printf 'Filesystem M Used Available\\n/dev/x 100 99 1 99%% /\\n'")
        self.call("prod", expect=1)
        self.assert_says(
            "JWT_SECRET: is a placeholder", "CORS_ORIGINS: must list", "API_RELOAD: must be false",
            "DATABASE_URL: the password is a sample", "DATABASE_URL: needs TLS", "DATABASE_URL: names localhost",
            "KAFKA_BROKERS: names localhost", "ENCRYPTION_KEY: is the same as in .env.api",
            "postgres: docker-compose.yml or its override publishes a port", "disk: only 1 MB are free",
            "preflight: 10 problem(s)", "nothing was deployed",
            "warning: LOG_LEVEL: is debug", "warning: LOG_FORMAT: is text",
            "warning: PUBLIC_URL: is not an https", "warning: TRUSTED_PROXIES: is not set",
            "warning: .env.api.production: other users")
        self.assertEqual(self.state()["containers"], {})

    def test_preflight_refuses_each_fault_alone(self):
        weak = "postgresql://u:{}@db.example.com/d?sslmode=verify-full"
        for settings, problem in (
            ({"JWT_SECRET": None}, "JWT_SECRET: is required"),
            ({"JWT_SECRET": "short"}, "JWT_SECRET: must have at least 32"),
            ({"DATABASE_URL": None}, "DATABASE_URL: is not set"),
            ({"DATABASE_URL": weak.format("STRONG_PASSWORD")}, "DATABASE_URL: the password is a sample"),
            ({"DATABASE_URL": weak.format("aB3kd9Lm2x")}, "DATABASE_URL: the password has fewer than 16"),
            ({"DATABASE_URL": weak.format("abababababababababab")}, "DATABASE_URL: the password has few different"),
            ({"DATABASE_URL": weak.replace(":{}", "")}, "DATABASE_URL: has no password"),
            ({"DATABASE_URL": f"postgresql://u:{PASSWORD}@db.example.com/d"}, "DATABASE_URL: needs TLS"),
            ({"DATABASE_URL": f"postgresql://u:{PASSWORD}@db.example.com/d?sslmode=prefer"}, "DATABASE_URL: needs TLS"),
            ({"DATABASE_REPLICA_URL": f"postgresql://u:{PASSWORD}@db.example.com/d"}, "DATABASE_REPLICA_URL: needs TLS"),
            ({"DATABASE_URL": f"postgresql://u:{PASSWORD}@postgres/d?sslmode=require"}, "POSTGRES_PASSWORD: must be"),
            ({"PRODUCTION": "false"}, "PRODUCTION: must not be false"),
            ({"MAX_PAGE_SIZE": "many"}, "MAX_PAGE_SIZE: "),
        ):
            with self.subTest(problem):
                self.write_production(**settings)
                self.call("prod", "--check", expect=1)
                self.assert_says(problem, "preflight: 1 problem(s)")

    def test_preflight_refuses_settings_under_version_control(self):
        self.write_production()
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run([*git, "init", "-q"], cwd=self.root, check=True)
        subprocess.run([*git, "add", "-f", ".env.api.production"], cwd=self.root, check=True)
        self.call("prod", "--check", expect=1)
        self.assert_says(".env.api.production: is under version control", ".env.api: is not ignored by git")

    def test_the_check_of_production_deploys_nothing(self):
        self.write_production()
        self.call("prod", "--check")
        self.assert_says("No problems")
        self.assertNotIn("warning", self.messages)
        self.assertEqual(self.state()["containers"], {})
        self.write_production(JWT_SECRT="x")
        self.call("prod", "--check", env={"KAFKA_BROKERS": "other:9092"})
        self.assert_says("warning: JWT_SECRT is not a setting", "warning: KAFKA_BROKERS: the environment of this shell")
        self.call("prod", "--image", "elsewhere:1", expect=1)
        self.assert_says("image: elsewhere:1 is neither on this host nor in its registry")

    def test_production_is_backed_up_before_it_is_migrated(self):
        self.write_own_database()
        self.call("prod", expect=1)
        self.assert_says("needs TLS", "prod --plain-database")
        self.compose_calls()
        self.call("prod", "--plain-database")
        self.assertFalse((self.root / "backups").exists(), "no migration was pending")
        calls = [call for call in self.compose_calls() if not call.endswith("version")]
        self.assertTrue(all("--env-file .env.api.production" in call for call in calls), calls)
        psql(self.database, "SELECT 1")
        subprocess.run([os.environ["PROGRAM"], "migrate", "down", "1"], env=os.environ | {"DATABASE_URL": f"{SERVER}/{self.database}"},
                       check=True, capture_output=True)
        self.call("prod", "--plain-database")
        self.assertEqual(len([path for path in (self.root / "backups").iterdir() if path.name != ".lock"]), 1)
        self.assertNotIn("missing", self.call("migrate", "status"))

    def test_rollback_goes_back_to_the_previous_image_and_its_schema(self):
        self.write_own_database()
        self.state(images=["workflow-api:1", "workflow-api:2", "workflow-api:3"], old={"workflow-api:1": 3, "workflow-api:2": 2})
        self.call("rollback", expect=1)
        self.assert_says("has no earlier image", "--to")
        (self.root / ".deploy").mkdir()
        earlier = "2026-01-01T00:00:00Z prod workflow-api:1\n2026-01-02T00:00:00Z prod workflow-api:2\n"
        (self.root / ".deploy" / "deployments").write_text(earlier)
        self.call("prod", "--plain-database", "--image", "workflow-api:3")
        versions = psql(self.database, "SELECT version FROM _sqlx_migrations ORDER BY version").splitlines()
        running = self.state()["containers"]
        self.compose_calls()

        self.call("rollback", "--dry-run")
        self.assert_says("from workflow-api:3 to workflow-api:2", "revert 2 migration(s)", versions[-1], versions[-2], "4. start workflow-api:2")
        self.assertNotIn(versions[-3], self.messages)
        self.assertEqual(self.state()["containers"], running)
        self.compose_calls()

        self.call("rollback")
        calls = " | ".join(self.compose_calls())
        order = ["stop -t 30 api executor", "pg_dump", "migrate down 2 --yes", "up -d --no-build"]
        self.assertEqual(sorted(order, key=calls.index), order)
        self.assertEqual(self.state()["containers"]["api-0"]["image"], "workflow-api:2")
        self.assertEqual(self.state()["containers"]["postgres-0"]["status"], "running")
        remaining = "SELECT version FROM _sqlx_migrations ORDER BY version"
        self.assertEqual(psql(self.database, remaining).splitlines(), versions[:-2])
        self.assertEqual(psql(self.database, "SELECT count(*) FROM agents"), "7")

        # Once more: further back. Then nothing is left.
        self.call("rollback", "--keep-schema")
        self.assertEqual(self.state()["containers"]["executor-0"]["image"], "workflow-api:1")
        self.assertEqual(psql(self.database, remaining).splitlines(), versions[:-2])
        self.call("rollback", expect=1)
        self.assert_says("has no earlier image")
        self.call("rollback", "--to", "workflow-api:1", expect=1)
        self.assert_says("is deployed already")
        self.call("rollback", "--to", "workflow-api:9", expect=1)
        self.assert_says("is neither on this host nor in its registry")


class InComposeV2(ComposeCase):
    """The main ones with `docker compose`."""

    spelling = "docker compose"

    test_dev = InCompose.test_dev_deploys_a_fresh_clone_and_the_other_commands_look_after_it
    test_preflight = InCompose.test_preflight_reports_every_problem_at_once


if __name__ == "__main__":
    unittest.main()

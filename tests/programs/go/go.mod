module kybernate.io/tests/programs/go

go 1.24

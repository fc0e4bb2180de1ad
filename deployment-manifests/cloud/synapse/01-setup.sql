-- A database of the serverless SQL pool that reads the lake. Run once, as an administrator of the workspace, against `master` first.
--
-- Put in: the storage account for <account>, the container for <container>. The workspace's managed identity needs the role
-- "Storage Blob Data Reader" on that container, and "Storage Blob Data Contributor" where 04-export.sql is used as well.

-- The collation of the files: names are UTF-8 and compared byte by byte. Under another one the pool cannot skip row groups by a text.
CREATE DATABASE predictive_maintenance COLLATE Latin1_General_100_BIN2_UTF8;
GO

USE predictive_maintenance;
GO

-- Nobody needs to know this password: it protects the credential below, which holds no secret of its own.
-- Choose one of your own; it is not needed again.
CREATE MASTER KEY ENCRYPTION BY PASSWORD = '<password>';
GO

CREATE DATABASE SCOPED CREDENTIAL workspace_identity
WITH IDENTITY = 'Managed Identity';
GO

-- The folder that `lake.location` of the aggregator names.
CREATE EXTERNAL DATA SOURCE lake
WITH (LOCATION = 'https://<account>.dfs.core.windows.net/<container>/<folder>', CREDENTIAL = workspace_identity);
GO

-- For exports alone: the lake itself is Delta.
CREATE EXTERNAL FILE FORMAT parquet_snappy
WITH (FORMAT_TYPE = PARQUET, DATA_COMPRESSION = 'org.apache.hadoop.io.compress.SnappyCodec');
GO

-- The tables as they are, and the newest rows of those with revisions.
CREATE SCHEMA lake;
GO

-- What reports read.
CREATE SCHEMA trends;
GO

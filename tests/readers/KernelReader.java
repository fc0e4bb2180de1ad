import io.delta.kernel.Scan;
import io.delta.kernel.Snapshot;
import io.delta.kernel.Table;
import io.delta.kernel.data.ColumnVector;
import io.delta.kernel.data.ColumnarBatch;
import io.delta.kernel.data.FilteredColumnarBatch;
import io.delta.kernel.data.MapValue;
import io.delta.kernel.data.Row;
import io.delta.kernel.defaults.engine.DefaultEngine;
import io.delta.kernel.engine.Engine;
import io.delta.kernel.engine.FileReadResult;
import io.delta.kernel.internal.InternalScanFileUtils;
import io.delta.kernel.internal.data.ScanStateRow;
import io.delta.kernel.internal.util.Utils;
import io.delta.kernel.types.BinaryType;
import io.delta.kernel.types.BooleanType;
import io.delta.kernel.types.DataType;
import io.delta.kernel.types.DateType;
import io.delta.kernel.types.DoubleType;
import io.delta.kernel.types.IntegerType;
import io.delta.kernel.types.LongType;
import io.delta.kernel.types.MapType;
import io.delta.kernel.types.StringType;
import io.delta.kernel.types.StructField;
import io.delta.kernel.types.StructType;
import io.delta.kernel.types.TimestampType;
import io.delta.kernel.utils.CloseableIterator;
import io.delta.kernel.utils.FileStatus;
import java.io.IOException;
import java.io.File;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.apache.hadoop.conf.Configuration;

/**
 * Reads every table of lakes with Delta Kernel, which shares no code with the aggregator, and prints what canonical.py describes: a JSON
 * object a line. The texts of rows are made here anew, so that a mistake in canonical.py does not agree with itself.
 *
 * <p>Arguments: folders of lakes.
 */
public final class KernelReader {
    private final MessageDigest digest;
    private final Engine engine = DefaultEngine.create(new Configuration());

    private KernelReader() throws NoSuchAlgorithmException {
        digest = MessageDigest.getInstance("SHA-256");
    }

    public static void main(String[] lakes) throws Exception {
        KernelReader reader = new KernelReader();
        for (String lake : lakes) {
            List<String> tables = new ArrayList<>();
            for (String name : tablesOf(lake)) {
                tables.add(quoted(name) + ": " + reader.table(new File(lake, name).getPath()));
            }
            System.out.println("{\"lake\": " + quoted(lake) + ", \"tables\": {" + String.join(", ", tables) + "}}");
        }
    }

    private static Set<String> tablesOf(String lake) throws IOException {
        File[] folders = new File(lake).listFiles(folder -> new File(folder, "_delta_log").isDirectory());
        if (folders == null) {
            throw new IOException(lake + " is no folder");
        }
        Set<String> names = new TreeSet<>();
        for (File folder : folders) {
            names.add(folder.getName());
        }
        return names;
    }

    private String table(String path) throws Exception {
        Snapshot snapshot = Table.forPath(engine, path).getLatestSnapshot(engine);
        Scan scan = snapshot.getScanBuilder().build();
        Row state = scan.getScanState(engine);
        long[] sum = {0};
        long[] rows = {0};
        Set<Long> distinct = new HashSet<>();
        try (CloseableIterator<FilteredColumnarBatch> batches = scan.getScanFiles(engine)) {
            while (batches.hasNext()) {
                try (CloseableIterator<Row> files = batches.next().getRows()) {
                    while (files.hasNext()) {
                        readFile(state, files.next(), row -> {
                            long hash = hash(row);
                            rows[0] += 1;
                            sum[0] += hash;
                            distinct.add(hash);
                        });
                    }
                }
            }
        }
        List<String> columns = new ArrayList<>();
        for (String name : new TreeSet<>(snapshot.getSchema().fieldNames())) {
            columns.add(quoted(name));
        }
        return String.format("{\"rows\": %d, \"distinct\": %d, \"columns\": [%s], \"checksum\": \"%016x\"}",
                rows[0], distinct.size(), String.join(", ", columns), sum[0]);
    }

    private interface RowConsumer {
        void accept(Row row) throws IOException;
    }

    private void readFile(Row state, Row file, RowConsumer consumer) throws IOException {
        FileStatus status = InternalScanFileUtils.getAddFileStatus(file);
        StructType schema = ScanStateRow.getPhysicalDataReadSchema(state);
        CloseableIterator<FileReadResult> results = engine.getParquetHandler()
                .readParquetFiles(Utils.singletonCloseableIterator(status), schema, Optional.empty());
        CloseableIterator<ColumnarBatch> physical = results.map(FileReadResult::getData);
        try (CloseableIterator<FilteredColumnarBatch> logical =
                Scan.transformPhysicalData(engine, state, file, physical)) {
            while (logical.hasNext()) {
                try (CloseableIterator<Row> rows = logical.next().getRows()) {
                    while (rows.hasNext()) {
                        consumer.accept(rows.next());
                    }
                }
            }
        }
    }

    private long hash(Row row) {
        byte[] text = fields(row, "\u001f").getBytes(StandardCharsets.UTF_8);
        return ByteBuffer.wrap(digest.digest(text)).getLong();
    }

    /** Fields that are not null, by name. */
    private static String fields(Row row, String separator) {
        StructType schema = row.getSchema();
        TreeMap<String, String> texts = new TreeMap<>();
        for (int index = 0; index < schema.length(); index++) {
            StructField field = schema.at(index);
            if (!row.isNullAt(index)) {
                texts.put(field.getName(), field.getName() + "=" + text(row, index, field.getDataType()));
            }
        }
        return String.join(separator, texts.values());
    }

    private static String text(Row row, int index, DataType type) {
        if (type instanceof StringType) {
            return row.getString(index);
        }
        if (type instanceof BooleanType) {
            return Boolean.toString(row.getBoolean(index));
        }
        if (type instanceof IntegerType || type instanceof DateType) {
            return Integer.toString(row.getInt(index));
        }
        if (type instanceof LongType || type instanceof TimestampType) {
            return Long.toString(row.getLong(index));
        }
        if (type instanceof DoubleType) {
            return bits(row.getDouble(index));
        }
        if (type instanceof BinaryType) {
            StringBuilder hex = new StringBuilder();
            for (byte value : row.getBinary(index)) {
                hex.append(String.format("%02x", value));
            }
            return hex.toString();
        }
        if (type instanceof MapType) {
            return map(row.getMap(index));
        }
        if (type instanceof StructType) {
            return "{" + fields(row.getStruct(index), ",") + "}";
        }
        throw new IllegalArgumentException("no table of the lake has the type " + type);
    }

    private static String map(MapValue map) {
        ColumnVector keys = map.getKeys();
        ColumnVector values = map.getValues();
        TreeMap<String, String> texts = new TreeMap<>();
        for (int entry = 0; entry < map.getSize(); entry++) {
            texts.put(keys.getString(entry), keys.getString(entry) + "=" + bits(values.getDouble(entry)));
        }
        return "{" + String.join(",", texts.values()) + "}";
    }

    private static String bits(double value) {
        return String.format("%016x", Double.doubleToRawLongBits(value));
    }

    private static String quoted(String text) {
        return "\"" + text.replace("\\", "\\\\").replace("\"", "\\\"") + "\"";
    }
}
